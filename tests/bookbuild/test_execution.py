"""Running chapters and keeping what they gave, with small books made for the purpose."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bookbuild import execution, notebooks
from bookbuild.chapters import Result, plan
from bookbuild.execution import building, execute
from cdlib.errors import CdlibError

ROOT = Path(__file__).parents[2]
Book = Callable[..., Path]

PARAMETERS = "seed = 0  # of every random choice\nlr = 0.1\ndata = 'digits'\nfast = True"
# Every execution leaves a line in a file, which is how the tests see what ran.
LEAVE_A_TRACE = "from pathlib import Path\nwith open('trace', 'a') as file:\n    print(seed, lr, data, fast, file=file)"


def trace(book: Path) -> list[str]:
    file = book / "notebooks" / "trace"
    return file.read_text().splitlines() if file.exists() else []


def run(book: Path, numbers: list[str] | None = None, **parameters: object) -> list[Result]:
    with building(book):
        return execute(plan(book, numbers, parameters=parameters), book)


def executed(book: Path) -> list[str]:
    return sorted(path.name for path in (book / "_build" / "executed").iterdir())


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

    def key(**parameters: object) -> str:
        return execution.key(plan(book, parameters=parameters)[0], execution.surroundings(book))

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
    monkeypatch.setenv("CDLIB_DATA", "elsewhere")
    keys.append(key())
    source = book / "notebooks" / "01_first.md"
    source.write_text(source.read_text().replace("print(seed)", "print(seed + 1)"))
    keys += [key(), key(seed=1)]
    assert len(set(keys)) == len(keys)


def test_relative_places_are_the_users_not_the_chapters(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book = small_book(_01_place=['data = "digits"', "import os\nprint(data, os.environ['CDLIB_DATA'])"])
    monkeypatch.chdir(book)
    monkeypatch.setenv("CDLIB_DATA", "images")
    [result] = run(book, data="folder:images")
    assert result.error is None
    assert f"folder:{book}/images {book}/images" in result.path.read_text()


def test_parameters_reach_the_chapter_with_the_type_of_their_default(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE])
    [result] = run(book, seed="3", lr="1e-3", data="07", fast="false")
    assert result.error is None and trace(book) == ["3 0.001 07 False"]
    [folded] = [cell for cell in notebooks.read(result.path).cells if notebooks.INJECTED in notebooks.tags(cell)]
    assert "hide-input" in notebooks.tags(folded) and "seed = 3" in folded.metadata.mystnb.code_prompt_show
    assert run(book, seed=3, lr=0.001, data="07", fast=False)[0].cached


def test_the_same_run_gives_the_same_file(small_book: Book) -> None:
    book = small_book(
        _01_first=[PARAMETERS, "import sys\nfor i in range(3):\n    print(i)\n    sys.stdout.flush()\nseed"]
    )
    [result] = run(book)
    notebooks.publish(result.path, book / "first.ipynb")
    result.path.unlink()
    [result] = run(book)
    again = notebooks.read(result.path)
    assert not result.cached and again.metadata.cdlib.seconds == result.seconds
    assert not notebooks.publish(result.path, book / "first.ipynb")  # byte for byte
    assert [output.output_type for output in again.cells[-1].outputs] == ["stream", "execute_result"]
    assert [cell.execution_count for cell in again.cells if cell.cell_type == "code"] == [1, 2]


# -------------------------------------------------------------------------------------------------------- what fails


def test_a_failing_chapter_is_named_with_its_cell_and_the_others_finish(
    small_book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "_01_raises": ("# why\nwidth = 1 / seed\nwidth", "(width = 1 / seed): ZeroDivisionError: division by zero"),
        "_02_dies": ("import os\nos._exit(0)", "(import os): the kernel died (out of memory, or killed)"),
        "_03_ends": ("import sys\nsys.exit(0)", "(import sys): SystemExit: 0"),
        "_04_quits": ("exit()", "(exit()): the cell ends the kernel"),
        "_05_magic": ("%nosuch 3", "(%nosuch 3): UsageError: Line magic function `%nosuch` not found."),
        "_06_alone": (
            "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)",
            "(import os, signal, time): the process that ran it died (out of memory, or killed)",
        ),
    }
    broken = {name: [PARAMETERS, "print()", source, LEAVE_A_TRACE] for name, (source, _) in expected.items()}
    count = "count = globals().get('count', 0) + 1\nassert count < 3"  # the line of a cell that stands twice is its own
    book = small_book(**broken, _07_works=[PARAMETERS, LEAVE_A_TRACE], _08_thrice=[PARAMETERS, count, count, count])
    *failed, works, thrice = run(book, lr="0.2")  # there is one more cell then, of which readers know nothing
    for result, (name, (_, why)) in zip(failed, expected.items(), strict=True):
        assert result.error == f"notebooks/{name[1:]}.md:28: code cell 3 {why}"
    assert thrice.error == (
        "notebooks/08_thrice.md:34: code cell 4 (count = globals().get('count', 0) + 1): AssertionError"
    )
    assert works.error is None and trace(book) == ["0 0.2 digits True"]
    shown = capsys.readouterr().err
    assert f"FAILED after {failed[0].seconds:.1f} s: {failed[0].error}" in shown
    assert "07 Title 07: done" in shown
    raised = notebooks.read(failed[0].path)
    assert [output.ename for cell in raised.cells for output in cell.get("outputs", []) if "ename" in output] == [
        "ZeroDivisionError"
    ]
    assert not [name for name in executed(book) if name.startswith(".")]


def test_a_kernel_that_does_not_start_is_reported_with_what_it_said(
    small_book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "ipykernel_launcher.py").write_text("raise SystemExit('no kernel today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(book), *filter(None, [os.environ.get("PYTHONPATH")])]))
    [result] = run(book)
    assert result.error is not None and result.error.startswith("notebooks/01_first.md: ")
    assert "no kernel today" in result.error and "\n" not in result.error


# -------------------------------------------------------------------------------------------------- what cannot be kept


def test_an_unwritable_build_folder_is_named(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS])
    (book / "_build").write_text("in the way")
    with pytest.raises(CdlibError, match=r"cannot write to .*_build/executed: Not a directory"):
        run(book)


@pytest.mark.parametrize(
    ("where", "code"),
    [
        *(("tempfile.mkdtemp", errno.EROFS), ("tempfile.mkdtemp", errno.ENOSPC)),
        *(("nbformat.write", errno.ENOSPC), ("bookbuild.notebooks.write", errno.ENOSPC)),
    ],
)
def test_a_disk_that_takes_nothing_is_reported_with_the_systems_reason(
    small_book: Book, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    book = small_book(_01_first=[PARAMETERS], _02_second=[PARAMETERS, "while True:\n    pass"])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(where, refuse)
    with pytest.raises(CdlibError) as error:
        run(book)
    assert str(error.value).startswith(f"cannot write to {book / '_build'}: {os.strerror(code)}")
    assert "\n" not in str(error.value)
    assert executed(book) == []
    assert kernels(book) == []


def kernels(book: Path) -> list[psutil.Process]:
    """Return the processes that run a book, and what they started: they work in its folder or have settings there."""
    found = []
    for process in psutil.process_iter():
        try:
            places = process.cwd(), process.environ().get("IPYTHONDIR", "")
            if any(place.startswith(str(book)) for place in places) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_damaged_run_counts_as_absent(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE])
    [result] = run(book)
    whole = result.path.read_text()
    for content in (
        *("", whole[:-200], "{}", "[]", "null", whole.replace('"seconds"', '"s"'), whole.replace('"cdlib"', '"x"')),
        *(whole.replace('"code"', '"markdown"', 1), whole.replace("seed, lr", "lr, seed"), "\0" * len(whole)),
        *(whole.replace('"outputs"', '"out"'), whole.replace('"cells"', '"cell"')),
    ):
        assert content != whole
        result.path.write_text(content)
        assert execution._kept(result.job, result.path) is None, content
    result.path.write_bytes(b"\xff\xfe")
    [again] = run(book)
    assert (again.error, again.cached, len(trace(book))) == (None, False, 2)
    assert execution._kept(again.job, again.path) is not None


def test_a_run_just_made_stays_whatever_the_clock_says(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS])
    folder = book / "_build" / "executed"
    folder.mkdir(parents=True)
    tomorrow, yesterday = time.time() + 86_400, time.time() - 86_400
    for k in range(12):
        path = folder / f"01_first.{k:016x}.ipynb"
        path.write_text("{}")
        os.utime(path, (tomorrow, tomorrow) if k < 8 else (yesterday, yesterday))
    failed = folder / "01_first.failed.ipynb"
    failed.write_text("{}")
    [result] = run(book)
    assert result.error is None and result.path.exists()
    kept = [path for path in folder.glob("01_first.*.ipynb") if path != failed]
    assert len(kept) == execution.KEPT
    assert {f"01_first.{k:016x}.ipynb" for k in range(8, 12)} < {path.name for path in kept}  # the future is the oldest
    assert failed.exists()


# --------------------------------------------------------------------------------------------------- being interrupted


def test_an_interruption_leaves_whole_runs_or_none(small_book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book = small_book(_01_quick=[PARAMETERS], _02_long=[PARAMETERS, "while True:\n    pass"])
    prune = execution._prune

    def stop_after_the_first(latest: Path) -> None:
        prune(latest)
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "_prune", stop_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run(book)
    [kept] = executed(book)
    assert kept.startswith("01_quick.")
    assert kernels(book) == []


def start(book: Path, *words: str) -> subprocess.Popen[str]:
    """Start what make starts, with its messages on a pipe."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bookbuild", *words]

    def heed() -> None:  # what runs the tests may ignore these, as nohup does, and children inherit that
        for sent in (signal.SIGINT, signal.SIGHUP):
            signal.signal(sent, signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=book, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    )


def eventually(fact: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not fact() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(fact())


@pytest.mark.parametrize(
    ("words", "sent"), [("book", "SIGTERM"), ("chapter 1 quick", "SIGHUP"), ("pair", "SIGINT"), ("book", "SIGKILL")]
)
def test_a_signal_ends_every_process_and_leaves_the_old_site(small_book: Book, words: str, sent: str) -> None:
    child = "import subprocess\nsubprocess.Popen(['sleep', '1000'])\n"
    book = small_book(_01_long=[PARAMETERS, child + LEAVE_A_TRACE + "\nwhile True:\n    pass"])
    site = book / "_build" / "html"
    site.mkdir(parents=True)
    (site / "index.html").write_text("the old site")
    make = start(book, *words.split())
    assert eventually(lambda: trace(book))
    assert len(kernels(book)) >= 4  # make's, a chapter's, its kernel and what that started
    everyone = os.killpg if sent in ("SIGINT", "SIGHUP") else os.kill  # a terminal sends these to all that runs in it
    everyone(make.pid, signal.Signals[sent])
    _, messages = make.communicate(timeout=30)
    if sent == "SIGKILL":
        assert eventually(lambda: not kernels(book), 30)
    else:
        assert (make.returncode, kernels(book)) == (130, [])
        assert messages.endswith("stopped; the chapters that were done are kept.\n")
        assert executed(book) == []
    assert [path.name for path in site.iterdir()] == ["index.html"]


def test_two_at_once_wait_for_each_other(small_book: Book) -> None:
    book = small_book(_01_first=[PARAMETERS, LEAVE_A_TRACE])
    left = book / "_build" / "executed" / ".01_first.of-a-killed-run"
    left.mkdir(parents=True)
    with building(book):
        second = start(book, "chapter", "1", "quick")
        assert second.stderr is not None
        assert second.stderr.readline().startswith(f"Another make is at work in {book / '_build'}; waiting")
        assert left.exists() and second.poll() is None and not trace(book)
    _, messages = second.communicate(timeout=120)
    assert second.returncode == 0 and "done in" in messages
    assert len(trace(book)) == 1 and len(executed(book)) == 1
