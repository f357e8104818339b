"""The book's chapters: which there are, which parameters each one takes, and running them.

A chapter is ``notebooks/NN_name.md``, the text that people edit. Names, numbers and values are checked here, all of
them before anything runs; `bookbuild.execution` does the running and keeps the results, `bookbuild.site` makes pages of
them.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdlib import files
from cdlib.errors import CdlibError, check_choice

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from bookbuild.execution import Result

Value = str | int | float | bool

_NAME = re.compile(r"(\d\d)_\w+")


@dataclass(frozen=True)
class Chapter:
    """One chapter as its source has it.

    Attributes
    ----------
    path : Path
        The source, ``notebooks/NN_name.md``.
    number, name, title : str
        "02", "02_complexity" and the first heading.
    parameters : dict
        The values of the quick profile by name, in the order of the `parameters` cell.
    notes : dict
        The comment beside each of them, or "".
    """

    path: Path
    number: str
    name: str
    title: str
    parameters: dict[str, Value]
    notes: dict[str, str]

    @cached_property
    def source(self) -> NotebookNode:
        """The notebook without outputs, made from the text."""
        return _read(self.path)


def checkout() -> Path:
    """Return the folder of the book: the first one, from the current folder upwards, with a ``_config.yml``.

    Raises
    ------
    CdlibError
        If there is none.
    """
    if place := files.checkout():
        return place
    raise CdlibError(f"no book here: no _config.yml in {Path.cwd()} or above; run inside the checkout.")


def find(root: Path | None = None) -> list[Chapter]:
    """Return the chapters in the order of their numbers.

    Parameters
    ----------
    root : Path, optional
        The folder of the book; default `checkout()`.

    Raises
    ------
    CdlibError
        If there is none, two share a number, or one has no usable `parameters` cell.
    """
    root = root or checkout()
    chapters = [_chapter(path) for path in sorted((root / "notebooks").glob("*.md")) if _NAME.fullmatch(path.stem)]
    if not chapters:
        raise CdlibError(f"no chapters in {root / 'notebooks'}; a chapter is named like 01_why_compress.md.")
    for first, second in itertools.pairwise(chapters):
        if first.number == second.number:
            raise CdlibError(f"{first.path.name} and {second.path.name} share a number; rename one.")
    return chapters


def profiles(root: Path | None = None) -> list[str]:
    """Return the names of the profiles, "quick" first: the others are those of ``notebooks/profiles.yml``."""
    return ["quick", *_profiles(root or checkout())]


def run(
    numbers: Sequence[str | int] | None = None,
    *,
    profile: str = "quick",
    parameters: Mapping[str, object] | None = None,
    jobs: int = 2,
    root: Path | None = None,
    progress: bool = True,
) -> list[Result]:
    """Run chapters, or find that nothing they depend on has changed since they last ran.

    Parameters
    ----------
    numbers : sequence of str or int, optional
        Which chapters; default all of them.
    profile : str, default "quick"
        The values to run them with; see `profiles`.
    parameters : mapping, optional
        Values that override the profile's, in every chosen chapter; text is read as what the default is.
    jobs : int, default 2
        How many chapters at a time, each in a process of its own with one thread (``OMP_NUM_THREADS`` overrides).
    root : Path, optional
        The folder of the book; default `checkout()`.
    progress : bool, default True
        Show on standard error what is running, what is done and what failed.

    Returns
    -------
    list of Result
        One a chapter. A chapter that fails has its `error` set and keeps no other from running.

    Raises
    ------
    CdlibError
        If a chapter, a profile or a parameter is unknown or a value has the wrong type. Then nothing has run.
    """
    from bookbuild.execution import Job, execute

    root = root or checkout()
    if jobs < 1:
        raise CdlibError(f"jobs is {jobs}; run at least one chapter at a time.")
    chosen = _choose(find(root), numbers)
    return execute(
        [Job(c, profile, settings(c, profile, parameters or {}, root)) for c in chosen], root, jobs, progress
    )


def settings(chapter: Chapter, profile: str, parameters: Mapping[str, object], root: Path) -> dict[str, Value]:
    """Return every parameter of a chapter as it will run: its own values, then the profile's, then those given.

    Raises
    ------
    CdlibError
        If the profile or one of the names is unknown, or a value is not of its default's type.
    """
    table = _profiles(root)
    check_choice("profile", profile, ["quick", *table])
    values = dict(chapter.parameters)
    for given in (table.get(profile, {}).get(chapter.number, {}), parameters):
        for name, value in given.items():
            check_choice(f"parameter of chapter {chapter.number}", name, values)
            values[name] = _typed(chapter, name, value)
    return values


def _choose(chapters: list[Chapter], numbers: Iterable[str | int] | None) -> list[Chapter]:
    if numbers is None:
        return chapters
    by_number = {chapter.number: chapter for chapter in chapters}
    wanted = dict.fromkeys(str(number).zfill(2) for number in numbers)
    for number in wanted:
        check_choice("chapter", number, by_number)
    return [by_number[number] for number in sorted(wanted)]


def _typed(chapter: Chapter, name: str, value: object) -> Value:
    """Return a value as the type of the parameter's default, reading text as YAML has it."""
    import yaml

    default = chapter.parameters[name]
    wanted = type(default)
    found: Any = value
    if isinstance(value, str) and wanted is not str:
        try:
            found = wanted(value) if wanted is float else yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            found = value
    if wanted is float and type(found) is int:
        found = float(found)
    if isinstance(found, str) and found.startswith("folder:"):  # chapters run in another folder than the user's
        found = f"folder:{Path(found.removeprefix('folder:')).expanduser().absolute()}"
    if type(found) is not wanted:
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        expected = f"{kinds[wanted]}, like its default {default!r}"
        raise CdlibError(f"parameter {name!r} of chapter {chapter.number} is {value!r}; give {expected}.")
    return found


def _profiles(root: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Return profile -> chapter number -> parameters, as ``notebooks/profiles.yml`` has them."""
    import yaml

    path = root / "notebooks" / "profiles.yml"
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {
            profile: {str(number).zfill(2): dict(values) for number, values in (chapters or {}).items()}
            for profile, chapters in table.items()
        }
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise CdlibError(
            f"cannot read {path}: it must map profile, chapter number and parameter to a value."
        ) from error


def _read(path: Path) -> NotebookNode:
    try:
        import jupytext
    except ModuleNotFoundError as error:
        raise CdlibError("running chapters needs more packages: pip install 'cnn-compression-book[book]'.") from error
    return jupytext.read(path)


def _chapter(path: Path) -> Chapter:
    notebook = _read(path)
    headings = (
        re.search(r"^# +(.+)$", cell.source, re.MULTILINE) for cell in notebook.cells if cell.cell_type == "markdown"
    )
    title = next((heading[1].strip() for heading in headings if heading), path.stem)
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise CdlibError(f"{path} has {len(cells)} cells tagged 'parameters'; it must have one.")
    parameters, notes = _parameters(cells[0], path)
    return Chapter(path, path.stem[:2], path.stem, title, parameters, notes)


def _parameters(source: str, path: Path) -> tuple[dict[str, Value], dict[str, str]]:
    """Return the values and the comments of a `parameters` cell: nothing but ``name = literal  # comment``."""
    values: dict[str, Value] = {}
    rows: dict[int, str] = {}
    try:
        for statement in ast.parse(source).body:
            if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
                raise ValueError(ast.unparse(statement))
            name, value = statement.targets[0].id, ast.literal_eval(statement.value)
            if not isinstance(value, Value):
                raise ValueError(ast.unparse(statement))
            values[name] = value
            rows[statement.end_lineno or statement.lineno] = name
    except (ValueError, SyntaxError) as error:
        raise CdlibError(f"{path}: the 'parameters' cell may only hold lines like seed = 0, not: {error}.") from error
    notes = dict.fromkeys(values, "")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.start[0] in rows:
            notes[rows[token.start[0]]] = token.string.lstrip("# ")
    return values, notes
