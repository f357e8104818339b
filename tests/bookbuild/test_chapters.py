"""Finding, checking and running chapters, with small books made for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bookbuild import chapters, execution, notebooks
from cdlib.errors import CdlibError

Book = Callable[..., Path]

PARAMETERS = "seed = 0  # of every random choice\nlr = 0.1\ndata = 'digits'\nfast = True"
# Every execution leaves a line in a file, which is how the tests see what ran.
LEAVE_A_TRACE = "from pathlib import Path\nwith open('trace', 'a') as file:\n    print(seed, lr, data, fast, file=file)"


def trace(book: Path) -> list[str]:
    file = book / "notebooks" / "trace"
    return file.read_text().splitlines() if file.exists() else []


def run(book: Path, **how: object) -> list[execution.Result]:
    return chapters.run(root=book, progress=False, **how)  # type: ignore[arg-type]


def test_finds_chapters_with_their_titles_and_parameters(small_book: Book) -> None:
    book = small_book(_02_second=["width = -8  # hidden units"], _01_first=[PARAMETERS])
    (book / "notebooks" / "notes.md").write_text("no chapter")
    first, second = chapters.find(book)
    assert (first.number, first.name, first.title) == ("01", "01_first", "Title 01")
    assert first.parameters == {"seed": 0, "lr": 0.1, "data": "digits", "fast": True}
    assert first.notes["seed"] == "of every random choice" and first.notes["lr"] == ""
    assert second.parameters == {"width": -8}


@pytest.mark.parametrize(
    "source", ["import os", "seed = [1]", "seed = None", "a, b = 1, 2", "seed = int('3')", "seed ="]
)
def test_refuses_a_parameters_cell_that_computes(small_book: Book, source: str) -> None:
    with pytest.raises(CdlibError, match="01_first.md: the 'parameters' cell may only hold"):
        chapters.find(small_book(_01_first=[source]))


def test_a_second_run_executes_nothing_and_edited_prose_does_not_either(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE, "seed + 41"])
    [ran] = run(book)
    [kept] = run(book)
    assert (ran.error, ran.cached, kept.cached) == (None, False, True)
    assert (kept.path, kept.seconds) == (ran.path, ran.seconds)

    text = book / "notebooks" / "01_first.md"
    text.write_text(text.read_text().replace("# Title 01", "# A better title\n\nMore words."))
    [kept] = run(book)
    assert kept.cached and len(trace(book)) == 1
    notebook = notebooks.read(kept.path)
    assert "More words." in notebook.cells[0].source
    assert notebook.cells[-1].outputs[0].data["text/plain"] == "41"


def test_what_a_chapter_depends_on_makes_it_run_again(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book = small_book(_01_first=[PARAMETERS, "print(seed)"])
    job = execution.Job(chapters.find(book)[0], "quick", chapters.find(book)[0].parameters)

    def key() -> str:
        return execution.key(
            execution.Job(chapters.find(book)[0], "quick", job.parameters), execution.surroundings(book)
        )

    keys = [key()]
    (book / "results" / "fit").mkdir(parents=True)
    for path, text in [
        ("results/fit/0123.json", "{}"),
        ("results/fit/0123.json", '{"a": 1}'),
        ("requirements.lock", "torch==2.14.1"),
    ]:
        (book / path).write_text(text)
        keys.append(key())
    package = book / "package"
    package.mkdir()
    monkeypatch.setattr(execution.cdlib, "__file__", str(package / "__init__.py"))
    for text in ("a = 1", "a = 2"):
        (package / "models.py").write_text(text)
        keys.append(key())
    text = book / "notebooks" / "01_first.md"
    text.write_text(text.read_text().replace("print(seed)", "print(seed + 1)"))
    keys.append(key())
    job.parameters["seed"] = 1
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_relative_places_are_the_users_not_the_chapters(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book = small_book(_01_place=['data = "digits"', "import os\nprint(data, os.environ['CDLIB_DATA'])"])
    monkeypatch.chdir(book)
    monkeypatch.setenv("CDLIB_DATA", "images")
    [result] = chapters.run(["01"], parameters={"data": "folder:images"}, root=book, progress=False)
    assert result.error is None
    assert f"folder:{book}/images {book}/images" in result.path.read_text()


def test_parameters_reach_the_chapter_with_the_type_of_their_default(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE])
    [result] = run(book, parameters={"seed": "3", "lr": "1e-3", "data": "07", "fast": "false"})
    assert result.error is None and trace(book) == ["3 0.001 07 False"]
    [folded] = [cell for cell in notebooks.read(result.path).cells if notebooks.INJECTED in notebooks.tags(cell)]
    assert "hide-input" in notebooks.tags(folded) and "seed = 3" in folded.metadata.mystnb.code_prompt_show
    assert run(book, parameters={"seed": 3, "lr": 0.001, "data": "07", "fast": False})[0].cached


def test_a_profile_changes_the_defaults_and_parameters_change_the_profile(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "notebooks" / "profiles.yml").write_text("laptop:\n  01: {data: cifar10, lr: 1}\npaper:\n")
    assert chapters.profiles(book) == ["quick", "laptop", "paper"]
    [chapter] = chapters.find(book)
    values = chapters.settings(chapter, "laptop", {"lr": "0.5"}, book)
    assert values == {"seed": 0, "lr": 0.5, "data": "cifar10", "fast": True}
    assert chapters.settings(chapter, "paper", {}, book) == chapter.parameters


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
        ({"jobs": 0}, "jobs is 0"),
    ],
)
def test_refuses_before_anything_runs(small_book: Book, how: dict[str, object], message: str) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE])
    (book / "notebooks" / "profiles.yml").write_text("laptop: {}\npaper: {1: {epoch: 3}}\n")
    with pytest.raises(CdlibError) as error:
        run(book, **how)
    assert str(error.value).startswith(message)
    assert trace(book) == [] and not (book / "_build").exists()


def test_an_unwritable_build_folder_is_named(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "_build").write_text("in the way")
    with pytest.raises(CdlibError, match=r"cannot write to .*_build/executed: "):
        run(book)


def test_a_failing_chapter_is_named_and_the_others_finish(small_book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    book = small_book(
        _01_breaks=[PARAMETERS, "# why\nwidth = 1 / seed\nwidth"],
        _02_dies=[PARAMETERS, "import os\nos._exit(1)"],
        _03_works=[PARAMETERS, LEAVE_A_TRACE],
    )
    breaks, dies, works = chapters.run(root=book)
    assert breaks.error == (
        "notebooks/01_breaks.md:24: code cell 2 (width = 1 / seed): ZeroDivisionError: division by zero"
    )
    assert dies.error is not None and "02_dies.md:24: code cell 2 (import os): the kernel died" in dies.error
    assert works.error is None and len(trace(book)) == 1
    shown = capsys.readouterr().err
    assert f"FAILED after {breaks.seconds:.1f} s: {breaks.error}" in shown
    assert "03 Title 03: done" in shown
    assert breaks.path.exists()
    assert not [run for run in execution_folder(book) if run.startswith(".")]


def test_an_interruption_leaves_whole_runs_or_none(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book = small_book(_01_quick=[PARAMETERS], _02_long=[PARAMETERS, "while True:\n    pass"])
    done = execution.Progress.done

    def stop_after_the_first(self: execution.Progress, result: execution.Result) -> None:
        done(self, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(execution.Progress, "done", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run(book)
    [kept] = execution_folder(book)
    assert kept.startswith("01_quick.")


def test_the_same_run_gives_the_same_file(small_book: Book) -> None:
    book = small_book(
        _01_first=[PARAMETERS, "import sys\nfor i in range(3):\n    print(i)\n    sys.stdout.flush()\nseed"]
    )
    [result] = run(book)
    first = notebooks.read(result.path)
    result.path.unlink()
    [result] = run(book)
    again = notebooks.read(result.path)
    assert not result.cached
    assert notebooks.without_record(again) == notebooks.without_record(first)
    assert [output.output_type for output in again.cells[-1].outputs] == ["stream", "execute_result"]
    assert [cell.execution_count for cell in again.cells if cell.cell_type == "code"] == [1, 2]


def execution_folder(book: Path) -> list[str]:
    return sorted(path.name for path in (book / "_build" / "executed").iterdir())
