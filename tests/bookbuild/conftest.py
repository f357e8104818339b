"""Small books made for a test, and a browser for the built one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SITE = Path(__file__).parents[2] / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OFFLINE += ["--disable-component-update", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a network, whose webcam shows a picture of a left half in red and a right half in blue."""
    if not (SITE / "index.html").exists():
        pytest.skip("the site is not built: make book")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    film = tmp_path_factory.mktemp("camera") / "halves.y4m"
    rows = b"".join(bytes([left]) * 32 + bytes([right]) * 32 for left, right in [(81, 41)] * 64)
    chroma = b"".join(bytes([left]) * 16 + bytes([right]) * 16 for left, right in [(90, 240)] * 32 + [(240, 110)] * 32)
    film.write_bytes(b"YUV4MPEG2 W64 H64 F10:1 Ip A1:1 C420\n" + (b"FRAME\n" + rows + chroma) * 10)
    with sync_api.sync_playwright() as play:
        camera = [*CAMERA, f"--use-file-for-fake-video-capture={film}"]
        opened = play.chromium.launch(executable_path=program, args=[*OFFLINE, *camera])
        yield opened
        opened.close()


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
