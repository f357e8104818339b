"""The book's chapters: which there are, which parameters each one takes, and what running one is and gives.

A chapter is ``notebooks/NN_name.md``, the text that people edit. Names, numbers and values are checked here, all of
them before anything runs; `bookbuild.execution` does the running, `bookbuild.site` makes pages of the results.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from nbformat import NotebookNode

from bookbuild import notebooks
from cdlib.errors import CdlibError, check_choice
from cdlib.text import one_line

Value = str | int | float | bool

_NAME = re.compile(r"(\d\d)_\w+")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Chapter:
    """One chapter as its source has it."""

    path: Path  # the source, notebooks/NN_name.md
    number: str  # "02"
    name: str  # "02_complexity"
    title: str  # its first heading
    parameters: dict[str, Value]  # those of the quick profile, in the order of the `parameters` cell
    notes: dict[str, str]  # the comment beside each of them, or ""
    source: NotebookNode = field(repr=False)  # the notebook without outputs


@dataclass(frozen=True)
class Job:
    """One chapter with every parameter it is to run with."""

    chapter: Chapter
    profile: str
    parameters: dict[str, Value]

    @property
    def changed(self) -> dict[str, Value]:
        """The parameters that differ from the chapter's own, which are the quick profile's."""
        return {name: value for name, value in self.parameters.items() if value != self.chapter.parameters[name]}


@dataclass(frozen=True)
class Result:
    """What running one chapter gave."""

    job: Job
    path: Path  # the executed notebook; of a chapter that failed, as far as it came
    seconds: float  # how long it ran, if `cached` when it last did
    cached: bool = False  # nothing had changed, so nothing ran
    error: str | None = None  # one line that says where and why it failed


def find(root: Path) -> list[Chapter]:
    """Return the chapters of the book in a folder, in the order of their numbers.

    A CdlibError if there is none, two share a number, or one cannot be read or has no usable `parameters` cell.
    """
    chapters = [_chapter(path) for path in sorted((root / "notebooks").glob("*.md")) if _NAME.fullmatch(path.stem)]
    if not chapters:
        raise CdlibError(f"no chapters in {root / 'notebooks'}; a chapter is named like 01_why_compress.md.")
    for first, second in itertools.pairwise(chapters):
        if first.number == second.number:
            raise CdlibError(f"{first.path.name} and {second.path.name} share a number; rename one.")
    return chapters


def profiles(root: Path) -> list[str]:
    """Return the names of the profiles, "quick" first: the others are those of ``notebooks/profiles.yml``."""
    return ["quick", *_profiles(root)]


def plan(
    root: Path,
    numbers: Iterable[str | int] | None = None,
    *,
    profile: str = "quick",
    parameters: Mapping[str, object] | None = None,
) -> list[Job]:
    """Return what is to run in the book of a folder, with every parameter settled: all chapters or those of `numbers`.

    The values of a profile (see `profiles`) replace the chapters' own, and `parameters` replace the profile's in every
    chosen chapter; text is read as what the default is. A CdlibError if a chapter, the profile or a parameter is
    unknown, or a value is not of its default's type.
    """
    chapters = {chapter.number: chapter for chapter in find(root)}
    wanted = sorted({str(number).zfill(2) for number in numbers} if numbers is not None else chapters)
    for number in wanted:
        check_choice("chapter", number, chapters)
    table = _profiles(root)
    check_choice("profile", profile, ["quick", *table])
    jobs = []
    for chapter in (chapters[number] for number in wanted):
        values = dict(chapter.parameters)
        for given in (table.get(profile, {}).get(chapter.number, {}), parameters or {}):
            for name, value in given.items():
                check_choice(f"parameter of chapter {chapter.number}", name, values)
                values[name] = _typed(chapter, name, value)
        jobs.append(Job(chapter, profile, values))
    return jobs


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, or raise `CdlibError` if it is not there or is not YAML in UTF-8."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CdlibError(f"cannot read {path}: {one_line(error)}") from error


def _typed(chapter: Chapter, name: str, value: Any) -> Value:
    """Return a value as the type of the parameter's default, reading text as YAML has it."""
    default = chapter.parameters[name]
    wanted, found = type(default), value
    if isinstance(value, str) and wanted is not str:
        with contextlib.suppress(ValueError, yaml.YAMLError):
            found = wanted(value) if wanted is float else yaml.safe_load(value)
    if wanted is float and type(found) is int:
        found = float(found)
    if type(found) is not wanted:
        expected = f"{_KINDS[wanted]}, like its default {default!r}"
        raise CdlibError(f"parameter {name!r} of chapter {chapter.number} is {value!r}; give {expected}.")
    if isinstance(found, str) and found.startswith("folder:"):  # chapters run in another folder than the user's
        found = f"folder:{Path(found.removeprefix('folder:')).expanduser().absolute()}"
    return found


def _profiles(root: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Return profile -> chapter number -> parameters, as ``notebooks/profiles.yml`` has them."""
    path = root / "notebooks" / "profiles.yml"
    if not path.exists():
        return {}
    try:
        return {
            profile: {str(number).zfill(2): dict(values) for number, values in (chapters or {}).items()}
            for profile, chapters in (read_yaml(path) or {}).items()
        }
    except (AttributeError, TypeError) as error:
        form = "it must map profile, chapter number and parameter to a value."
        raise CdlibError(f"cannot read {path}: {form}") from error


def _chapter(path: Path) -> Chapter:
    try:
        source = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    except Exception as error:  # whatever the parser makes of a file that is not a chapter
        raise CdlibError(f"cannot read {path} as MyST in UTF-8: {one_line(error)}") from error
    source.metadata = nbformat.from_dict(notebooks.METADATA)
    prose = "\n\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# +(.+)$", prose, re.MULTILINE)
    title = heading[1].strip() if heading else path.stem
    return Chapter(path, path.stem[:2], path.stem, title, *_parameters(source, path), source)


def _parameters(source: NotebookNode, path: Path) -> tuple[dict[str, Value], dict[str, str]]:
    """Return values and comments of the `parameters` cell, which may hold only what papermill finds in it."""
    logging.getLogger("papermill").setLevel(logging.ERROR)  # of what it cannot read, the error below tells
    cells = [cell.source for cell in source.cells if "parameters" in notebooks.tags(cell)]
    if len(cells) != 1:
        raise CdlibError(f"{path} has {len(cells)} cells tagged 'parameters'; it must have one.")
    seen = papermill.inspect_notebook(source)
    lines = [line for line in cells[0].splitlines() if line.strip() and not line.startswith("#")]
    names = [line.partition("=")[0].partition(":")[0].strip() for line in lines]
    values: dict[str, Value] = {}
    for name, line in zip(names, lines, strict=True):
        try:
            value = ast.literal_eval(seen[name]["default"])
        except (KeyError, ValueError, SyntaxError):
            value = None
        if not isinstance(value, Value) or name in values:
            raise CdlibError(
                f"{path}: the 'parameters' cell may only hold lines like seed = 0  # why, with one = each, not: {line}."
            )
        values[name] = value
    return values, {name: seen[name]["help"] for name in values}
