"""Small books made for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""


@pytest.fixture
def small_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes a book of chapters given as name=cells and returns its folder."""
    monkeypatch.delenv("CDLIB_RESULTS", raising=False)

    def make(**chapters: list[str]) -> Path:
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "book").mkdir(exist_ok=True)
        (tmp_path / "book" / "index.md").write_text("# A small book\n")
        (tmp_path / "_config.yml").write_text("title: A small book\nsphinx: {config: {}}\n")
        toc = ["root: book/index", "chapters:"]
        for name, cells in chapters.items():
            number = name[1:3]
            blocks = [f"# Title {number}", "```{code-cell} ipython3\n:tags: [parameters]\n\n" + cells[0] + "\n```"]
            blocks += ["```{code-cell} ipython3\n" + cell + "\n```" for cell in cells[1:]]
            (tmp_path / "notebooks" / f"{name[1:]}.md").write_text(HEADER + "\n" + "\n\n".join(blocks) + "\n")
            toc.append(f"- file: notebooks/{name[1:]}")
        (tmp_path / "_toc.yml").write_text("\n".join(toc) + "\n")
        return tmp_path

    return make
