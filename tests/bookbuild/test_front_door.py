"""What the Makefile asks for: what is printed where, exit codes, one line for everything a user can get wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bookbuild import __main__ as commands
from bookbuild import notebooks, site
from bookbuild.chapters import Job, Result
from cdlib.errors import CdlibError

ROOT = Path(__file__).parents[2]
Book = Callable[..., Path]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what the commands set."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def book(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a book of two chapters, the current folder."""
    book = small_book(
        _01_title=["seed = 0  # a seed\nrate = 0.5", "assert rate < 1"], _02_other=["seed = 7", "print(seed)"]
    )
    (book / "notebooks" / "profiles.yml").write_text("laptop: {1: {rate: 0.75}}")
    monkeypatch.chdir(book)
    return book


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that gives the one line on standard error with which a command refuses."""

    def run(*words: str) -> str:
        assert commands.main(words) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err

    return run


def test_chapters_are_listed_with_their_parameters(book: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "bookbuild", "chapters"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [re.sub(" +", " ", line) for line in listed.stdout.splitlines()] == [
        *("01 Title 01", " seed = 0 # a seed", " rate = 0.5"),
        *("02 Title 02", " seed = 7", "profiles: quick, laptop"),
    ]
    assert listed.stderr == "" and not (book / "_build").exists()


def test_chapters_run_and_a_failure_is_exit_code_1(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["chapter", "1,2", "laptop", "seed=3"]) == 0
    printed = capsys.readouterr()
    paths = [Path(line.removeprefix("The executed notebook is ")) for line in printed.out.splitlines()]
    assert [notebooks.read(path).metadata.cdlib.parameters for path in paths] == [
        {"seed": 3, "rate": 0.75},
        {"seed": 3},
    ]
    assert "01 Title 01: done in" in printed.err
    assert commands.main(["--jobs=1", "chapter", "1", "quick", "rate=2"]) == 1
    printed = capsys.readouterr()
    assert "AssertionError" in printed.err
    assert printed.out == f"The executed notebook is {book / '_build' / 'executed' / '01_title.failed.ipynb'}\n"
    assert not (book / "notebooks" / "01_title.ipynb").exists()

    assert commands.main(["pair", "2"]) == 0
    target = book / "notebooks" / "02_other.ipynb"
    assert capsys.readouterr().out == f"wrote {target}\n"
    stored = notebooks.read(target)
    assert stored.cells[-1].outputs[0].text == "7\n" and "cdlib" not in stored.metadata
    assert commands.main(["pair", "2"]) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("chapter 1 quick sead=1", "did you mean 'seed'"),
        ("chapter 1 quick seed=x", "parameter 'seed' of chapter 01 is 'x'"),
        ("chapter 1 quick seed", "'seed' is no parameter; give name=value"),
        ("chapter 1 quick =1", "'=1' is no parameter; give name=value"),
        ("chapter 1 quick seed=1 seed=2", "given twice"),
        ("chapter 3 quick", "unknown chapter '03'"),
        ("chapter 1,3 quick", "unknown chapter '03'"),
        ("chapter 1 quik", "did you mean 'quick'"),
        ("book quik", "did you mean 'quick'"),
        ("pair 3", "unknown chapter '03'"),
        ("chapter quick", "say which chapter and how"),
        ("chapter 1,2 quick rate=0.1", "unknown parameter of chapter 02 'rate'"),
        ("--jobs=0 book", "jobs is 0"),
        ("--jobs=two book", "jobs is two"),
        ("boko", "unknown action 'boko'; did you mean 'book'"),
    ],
)
def test_what_is_not_known_is_refused(book: Path, refused: Callable[..., str], words: str, message: str) -> None:
    assert message in refused(*words.split())
    assert not (book / "_build").exists()


@pytest.mark.parametrize("words", ["book", "chapter 1 quick", "pair"])
def test_an_unwritable_folder_is_named(book: Path, refused: Callable[..., str], words: str) -> None:
    (book / "_build").touch()
    assert f"cannot write to {book / '_build'}" in refused(*words.split())


@pytest.mark.parametrize("words", ["chapters", "book", "chapter 1 quick", "pair"])
def test_outside_a_checkout_the_commands_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "_config.yml" in refused(*words.split())


def test_a_table_of_contents_that_does_not_fit_is_refused_before_anything_runs(
    book: Path, refused: Callable[..., str]
) -> None:
    toc = book / "_toc.yml"
    whole = toc.read_text()
    for text, message in [
        (whole.replace("- file: notebooks/01_title\n", ""), "notebooks/01_title is not in _toc.yml"),
        (whole + "- file: book/other\n", "_toc.yml names book/other, which does not exist"),
        (whole + "- file: notebooks/03_third\n", "_toc.yml names notebooks/03_third, which does not exist"),
        ("root: [", "_toc.yml: "),
    ]:
        toc.write_text(text)
        assert message in refused("book")
    toc.unlink()
    assert "_toc.yml: " in refused("book")
    assert not (book / "_build").exists()


def test_a_chapter_that_failed_or_a_site_that_did_not_come_out_is_exit_code_1(
    book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = ["notebooks/01_title.md:21: no luck", None]

    def executed(jobs: list[Job], root: Path, _: int) -> list[Result]:
        return [Result(job, root, 1.0, error=error) for job, error in zip(jobs, failures, strict=True)]

    def broken(*_: object) -> Path:
        raise CdlibError("no site today.")

    monkeypatch.setattr(commands, "execute", executed)
    monkeypatch.setattr(site, "build", broken)
    assert commands.main(["book"]) == 1
    assert capsys.readouterr().err == "error: 1 of 2 chapters failed (see above); the site was not built.\n"
    failures = [None, None]
    assert commands.main(["book"]) == 1
    assert capsys.readouterr().err == "error: no site today.\n"
    monkeypatch.setattr(site, "build", lambda results, root: root / "index.html")
    assert commands.main(["book"]) == 0
    assert capsys.readouterr().out == f"The book is {book / 'index.html'}\n"


def test_hanging_up_is_ignored_where_the_caller_ignores_it(book: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    assert commands.main(["chapters"]) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "--jobs=2 book quick"),
        (["book", "PROFILE=laptop", "JOBS=4"], "--jobs=4 book laptop"),
        (["chapter", "N=02", "PARAMS=seed=3 lr=0.1"], "--jobs=2 chapter 02 quick seed=3 lr=0.1"),
        (["chapter", "N=02", "PROFILE=laptop"], "--jobs=2 chapter 02 laptop"),
        (["pair", "N=02"], "--jobs=2 pair 02"),
        (["pair"], "--jobs=2 pair"),
        (["chapters"], "chapters"),
    ],
)
def test_make_passes_words_on(words: list[str], expected: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    own = ("ENV", "JOBS", "PROFILE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    command = ["make", "--dry-run", "--silent", *words]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1].strip() == f".venv/bin/python -m bookbuild {expected}"


def test_git_ignores_what_is_built_even_where_it_is_a_link(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in (".venv", "_build", "data"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cdlib" / "data").mkdir(parents=True)
    (tmp_path / "cdlib" / "data" / "__init__.py").touch()
    listed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"], cwd=tmp_path, capture_output=True, text=True
    ).stdout
    assert listed.split() == ["??", ".gitignore", "??", "cdlib/data/__init__.py"]
