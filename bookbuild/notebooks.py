"""Notebooks as files: a chapter's text joined with the outputs of a run, so that the same inputs give the same bytes.

Papermill's and Jupyter's traces (random cell ids, times, paths, metadata of the machine) are left out; what remains is
what a reader sees. Running is `bookbuild.execution`'s business.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from cdlib.files import atomic
from cdlib.text import digest

INJECTED = "injected-parameters"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_METADATA = ("tags", "mystnb", "jupyter")


def assemble(source: NotebookNode, executed: NotebookNode, record: Mapping[str, Any]) -> NotebookNode:
    """Return the notebook that shows `source`, a chapter as it is now, with the outputs of `executed`, in normal form.

    That is with deterministic cell ids, code cells numbered 1 to n, and no metadata but tags, figure options and, as
    ``metadata.cdlib``, the `record`: JSON values, what is to be remembered of the run. The text of `executed` may be
    older, and it may hold one more cell, the injected parameters; if its code is other, that is a ValueError.
    """
    ran = code_cells(executed)
    injected = next((cell for cell in executed.cells if INJECTED in tags(cell)), None)
    if [cell.source for cell in ran] != [cell.source for cell in code_cells(source)]:
        raise ValueError("this is a run of other code")
    outputs = iter([cell.outputs for cell in ran])
    cells = []
    for cell in source.cells:
        cells.append(_cell(cell, next(outputs) if cell.cell_type == "code" else []))
        if injected is not None and "parameters" in tags(cell):
            cells.append(_cell(_folded(injected), injected.outputs))
    _number(cells)
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA | ({"cdlib": dict(record)} if record else {}))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells with code, without the parameters that papermill injects."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and INJECTED not in tags(cell)]


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def read(path: Path) -> NotebookNode:
    """Read an ``.ipynb`` file."""
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> bool:
    """Write an ``.ipynb`` file, whole or not at all, unless it holds just that; return whether it was written."""
    text = (nbformat.writes(notebook).rstrip("\n") + "\n").encode()
    if path.exists() and path.read_bytes() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(text)
    return True


def publish(executed: Path, to: Path) -> bool:
    """Write an executed notebook in the form that remembers nothing of its run; return whether there was need to."""
    notebook = read(executed)
    notebook.metadata.pop("cdlib", None)
    return write(notebook, to)


def first_line(source: str) -> str:
    """Return the first line of a cell that does something, shortened."""
    lines = [line.strip() for line in source.splitlines() if re.match(r"\s*[^#%\s]", line)]
    line = lines[0] if lines else " ".join(source.split())
    return line if len(line) <= 60 else line[:57] + "..."


def _cell(cell: NotebookNode, outputs: Iterable[NotebookNode]) -> NotebookNode:
    metadata = {key: deepcopy(cell.metadata[key]) for key in KEPT_METADATA if key in cell.metadata}
    if cell.cell_type != "code":
        return nbformat.v4.new_markdown_cell(cell.source, metadata=metadata)
    return nbformat.v4.new_code_cell(cell.source, metadata=metadata, outputs=_joined(outputs))


def _folded(injected: NotebookNode) -> NotebookNode:
    """Return the injected cell under a line that says what it sets: a page must not pass for the quick profile."""
    cell = deepcopy(injected)
    values = ", ".join(line for line in cell.source.splitlines() if not line.startswith("#"))
    cell.metadata["tags"] = [INJECTED, "hide-input"]
    cell.metadata["mystnb"] = {"code_prompt_show": f"This run has {values}"}
    return cell


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Return the outputs with neighbouring pieces of one stream joined: where a stream is cut is a matter of timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(deepcopy(output))
    return joined


def _number(cells: list[NotebookNode]) -> None:
    """Give every cell an id that follows from its text and every code cell its count."""
    seen: Counter[str] = Counter()
    count = 0
    for cell in cells:
        key = digest([json.dumps([cell.cell_type, cell.source])])[:8]
        seen[key] += 1
        cell.id = key if seen[key] == 1 else f"{key}-{seen[key]}"
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
