"""Finding chapters and settling what is to run, with small books made for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bookbuild import chapters
from cdlib.errors import CdlibError

Book = Callable[..., Path]

PARAMETERS = "seed = 0  # of every random choice\nlr = 0.1\ndata = 'digits'\nfast = True"


def test_finds_chapters_with_their_titles_and_parameters(small_book: Book) -> None:
    book = small_book(_02_second=["width = -8  # hidden units"], _01_first=[PARAMETERS])
    (book / "notebooks" / "notes.md").write_text("no chapter")
    first, second = chapters.find(book)
    assert (first.number, first.name, first.title) == ("01", "01_first", "Title 01")
    assert first.parameters == {"seed": 0, "lr": 0.1, "data": "digits", "fast": True}
    assert first.notes == {"seed": "of every random choice", "lr": "", "data": "", "fast": ""}
    assert second.parameters == {"width": -8}


@pytest.mark.parametrize(
    "source",
    [
        *("import os", "seed = [1]", "seed = None", "a, b = 1, 2", "seed = int('3')", "seed =", "a = b = 1"),
        *("seed = 0\nseed = 1", "seed = 0\nprint(seed)", "seed = 0  # is not = 1", "if True:\n    seed = 0"),
    ],
)
def test_refuses_a_parameters_cell_that_computes(
    small_book: Book, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CdlibError, match="01_first.md: the 'parameters' cell may only hold"):
        chapters.find(small_book(_01_first=[source]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"# Caf\xe9\n", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9 in position 5"),
        (b"---\njupytext: [\n---\n# A title\n", "while parsing a flow node"),
        (b"```{code-cell}\n:tags: [parameters\n\nseed = 0\n```\n", "could not be read: Invalid YAML"),
        (b"# A title\n", "has 0 cells tagged 'parameters'"),
    ],
)
def test_a_file_that_is_no_chapter_is_named_in_one_line(small_book: Book, content: bytes, reason: str) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "notebooks" / "02_second.md").write_bytes(content)
    with pytest.raises(CdlibError) as error:
        chapters.find(book)
    assert "02_second.md" in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"laptop: {1: {title: \xe9}}", b"laptop: [", b"laptop: 3", b"- laptop"])
def test_profiles_that_cannot_be_read_are_named_in_one_line(small_book: Book, content: bytes) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "notebooks" / "profiles.yml").write_bytes(content)
    with pytest.raises(CdlibError, match=r"^cannot read .*profiles.yml: .*$"):
        chapters.plan(book)


def test_a_profile_changes_the_defaults_and_parameters_change_the_profile(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "notebooks" / "profiles.yml").write_text("laptop:\n  01: {data: cifar10, lr: 1}\npaper:\n")
    assert chapters.profiles(book) == ["quick", "laptop", "paper"]
    [job] = chapters.plan(book, profile="laptop", parameters={"lr": "0.5"})
    assert job.parameters == {"seed": 0, "lr": 0.5, "data": "cifar10", "fast": True}
    assert job.changed == {"lr": 0.5, "data": "cifar10"}
    [job] = chapters.plan(book, profile="paper")
    assert job.parameters == job.chapter.parameters and job.changed == {}


def test_chapters_are_chosen_by_number_in_their_order(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS], _02_second=[PARAMETERS], _03_third=[PARAMETERS])
    assert [job.chapter.number for job in chapters.plan(book, ["3", 1, "01"])] == ["01", "03"]
    assert [job.chapter.number for job in chapters.plan(book)] == ["01", "02", "03"]


def test_two_chapters_of_one_number_are_refused(small_book: Book) -> None:
    with pytest.raises(CdlibError, match="01_first.md and 01_other.md share a number"):
        chapters.find(small_book(_01_first=[PARAMETERS], _01_other=[PARAMETERS]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"parameters": {"sed": 1}}, "unknown parameter of chapter 01 'sed'; did you mean 'seed'?"),
        ({"parameters": {"seed": "1.5"}}, "parameter 'seed' of chapter 01 is '1.5'; give a whole number"),
        ({"parameters": {"seed": True}}, "parameter 'seed' of chapter 01 is True; give a whole number"),
        ({"parameters": {"lr": "fast"}}, "parameter 'lr' of chapter 01 is 'fast'; give a number"),
        ({"parameters": {"fast": "1"}}, "parameter 'fast' of chapter 01 is '1'; give true or false"),
        ({"profile": "labtop"}, "unknown profile 'labtop'; did you mean 'laptop'?"),
        ({"profile": "paper"}, "unknown parameter of chapter 01 'epoch'"),
        ({"numbers": ["1", 7]}, "unknown chapter '07'"),
    ],
)
def test_refuses_before_anything_runs(small_book: Book, how: dict[str, object], message: str) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "notebooks" / "profiles.yml").write_text("laptop: {}\npaper: {1: {epoch: 3}}\n")
    with pytest.raises(CdlibError) as error:
        chapters.plan(book, **how)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
    assert not (book / "_build").exists()
