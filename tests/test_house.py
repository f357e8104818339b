"""The rooms of the package: what is imported from where, what files may be called. `make lint` checks the floors."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent.name for path in (ROOT / "cdlib").glob("*/__init__.py"))
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.md"))
MODULES = [
    *sorted((ROOT / "cdlib").rglob("*.py")),
    *(path for folder in ("bookbuild", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))),
]


def imports(code: str) -> Iterator[tuple[str, str]]:
    """Every module of the package that code imports from, and the name."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "cdlib":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("cdlib."))


def faults(code: str, room: str = "") -> list[str]:
    """What code imports from elsewhere than the faces of the rooms it is not in, or what faces do not list."""
    found = []
    for module, name in imports(code):
        _, *inner = module.split(".")
        if not inner or inner[0] not in ROOMS or inner[0] == room:
            continue
        if len(inner) > 1:
            found.append(f"{module} is inside {inner[0]}: import {name} from cdlib.{inner[0]}")
        elif name and name not in importlib.import_module(module).__all__:
            found.append(f"{name} is not on the face of {module}")
    return found


def test_the_check_sees_what_it_should() -> None:
    assert faults("from cdlib.grouping import Groups\nfrom cdlib.errors import CdlibError\nimport cdlib") == []
    assert len(faults("from cdlib.grouping.labels import Axis")) == 1
    assert len(faults("from cdlib.grouping import assemble")) == 1
    assert len(faults("def f():\n    import cdlib.grouping.labels")) == 1
    assert faults("from cdlib.grouping.labels import Axis", room="grouping") == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_entered_by_their_faces(path: Path) -> None:
    inside = path.relative_to(ROOT).parts
    room = inside[1] if inside[0] == "cdlib" and len(inside) > 2 else ""
    assert faults(path.read_text(encoding="utf-8"), room) == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_use_faces_only(path: Path) -> None:
    cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    lines = [line for cell in cells for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))]
    assert faults("\n".join(lines)) == []


def test_no_file_hides_a_function_of_its_face() -> None:
    for room in ROOMS:
        face = importlib.import_module(f"cdlib.{room}")
        files = {path.stem for path in (ROOT / "cdlib" / room).iterdir() if path.suffix == ".py" or path.is_dir()}
        assert not {name for name in files.intersection(face.__all__) if callable(getattr(face, name))}


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted({name for name in names if names.count(name) > 1}) == []  # pytest imports them by these


def test_faces_have_what_they_list() -> None:
    for name in ["cdlib", *(f"cdlib.{room}" for room in ROOMS)]:
        face = importlib.import_module(name)
        assert [item for item in face.__all__ if not hasattr(face, item)] == []


def lines(*folders: str) -> int:
    """Lines of the Python files in folders, docstrings and blank ones included."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.parent.name != "benchmarks"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_the_package_stays_small_enough_to_read() -> None:
    """What CONTRIBUTING allows. Whoever needs more gives the reason there."""
    new = {room: lines(f"cdlib/{room}") for room in ("quantization", "edge", "lowrank", "distill")}
    assert new["quantization"] <= 1640
    assert new["edge"] <= 1620
    assert new["lowrank"] + new["distill"] <= 1000
    assert lines("cdlib/study") <= 2400
    assert lines("cdlib", "bookbuild") - sum(new.values()) <= 18_000
