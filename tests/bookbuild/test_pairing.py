"""The notebooks stored beside the chapters' text: the same cells, run once from top to bottom, no machine's traces."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bookbuild import chapters, notebooks
from bookbuild.chapters import Chapter
from bookbuild.notebooks import NotebookNode

ROOT = Path(__file__).parents[2]
CHAPTERS = [pytest.param(chapter, id=chapter.name) for chapter in chapters.find(ROOT)]


@pytest.fixture(params=CHAPTERS)
def chapter(request: pytest.FixtureRequest) -> Chapter:
    found: Chapter = request.param
    return found


@pytest.fixture
def stored(chapter: Chapter) -> NotebookNode:
    path = chapter.path.with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: make pair N={chapter.number}"
    return notebooks.read(path)


def test_text_and_notebook_hold_the_same_cells(chapter: Chapter, stored: NotebookNode) -> None:
    def cells(notebook: NotebookNode) -> list[tuple[str, str, list[str], object]]:
        return [(c.cell_type, c.source, notebooks.tags(c), c.metadata.get("mystnb")) for c in notebook.cells]

    assert cells(stored) == cells(chapter.source), f"make pair N={chapter.number}"


def test_the_notebook_is_in_normal_form(stored: NotebookNode) -> None:
    assert notebooks.assemble(stored, stored, {}) == stored
    ids = [cell.id for cell in stored.cells]
    assert len(set(ids)) == len(ids)


def test_it_ran_from_top_to_bottom_without_an_error(stored: NotebookNode) -> None:
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output.ename for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def test_outputs_hold_nothing_of_a_machine(stored: NotebookNode) -> None:
    text = json.dumps([cell.get("outputs", []) for cell in stored.cells])
    assert not re.findall(r"(?:/home/|/root/|/tmp/|/Users/|/var/|/work/|[A-Z]:\\\\)\S{0,40}", text)
    assert not re.findall(r"\S{0,40} at 0x[0-9a-f]{6,}", text)
