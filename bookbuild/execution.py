"""Runs chapters, each in a process of its own with one thread, and keeps what they gave while nothing changes.

A kept run is named by a hash of the chapter's code cells, its parameters, the package's source, the recorded results
and the lock file: editing a chapter's prose re-executes nothing. Files appear whole or not at all, so a run can be
stopped at any moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import nbformat
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import cdlib
from bookbuild import notebooks, worker
from bookbuild.chapters import Job, Result
from cdlib.errors import CdlibError
from cdlib.text import digest

KEPT = 8  # runs kept of one chapter


@contextlib.contextmanager
def building(root: Path) -> Iterator[None]:
    """Keep ``_build`` to this process in a ``with`` statement, after waiting for another that is at work there.

    A CdlibError if something in the block cannot be written, with the system's reason.
    """
    folder = root / "_build"
    try:
        (folder / "executed").mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another make is at work in {folder}; waiting until it is done.", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        raise CdlibError(f"cannot write to {place}: {reason}; mend that or use another checkout.") from error


def execute(jobs: list[Job], root: Path, workers: int = 2) -> list[Result]:
    """Run the jobs that have no kept run, some at a time, and return all results in the order of the jobs.

    A chapter that fails has its `error` set and keeps no other from running. Standard error says what is running, what
    is done and what failed. Runs are kept in ``_build/executed`` of the book, which `building` makes; if they cannot
    be, an `OSError` ends all of them.
    """
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells")
    moving = console.is_terminal
    bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not moving, transient=True)
    results: dict[str, Result] = {}

    def say(job: Job, what: str, style: str = "") -> None:
        console.print(f"{_label(job)}: {what}", style=style, markup=False, highlight=False, soft_wrap=True)

    def done(result: Result) -> None:
        results[result.job.chapter.number] = result
        if result.error:
            say(result.job, f"FAILED after {result.seconds:.1f} s: {result.error}", "bold red")
        else:
            say(result.job, *(["unchanged, kept"] if result.cached else [f"done in {result.seconds:.1f} s", "green"]))

    folder = root / "_build" / "executed"
    for left in folder.glob(".*.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    around = surroundings(root)
    waiting: list[tuple[Job, Path]] = []
    running: dict[Any, _Run] = {}
    with bars:
        for job in jobs:
            path = folder / f"{job.chapter.name}.{key(job, around)}.ipynb"
            if kept := _kept(job, path):
                done(kept)
            else:
                waiting.append((job, path))
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    run = _Run(*waiting.pop(0), root)
                    running[run.pipe] = run
                    run.bar = bars.add_task(_label(run.job), total=len(run.job.chapter.source.cells))
                    if not moving:
                        say(run.job, f"runs, {len(waiting)} waiting")
                for pipe in wait(list(running)):
                    run = running[pipe]
                    if run.goes_on():
                        bars.update(run.bar, completed=run.cell)
                        continue
                    done(run.result())
                    bars.remove_task(run.bar)
                    running.pop(pipe).close()
        finally:
            for run in running.values():
                run.close()
    return [results[job.chapter.number] for job in jobs]


def surroundings(root: Path) -> str:
    """Return a hash of what all chapters depend on: the package, the records, the versions, the data's place."""
    results = Path(os.environ.get("CDLIB_RESULTS") or root / "results")
    package = Path(cdlib.__file__).parent
    found = [(package, "**/*.py"), (results, "**/*.json"), (root, "requirements.lock")]
    files = [
        [path.relative_to(folder).as_posix(), digest([path.read_bytes()])]
        for folder, pattern in found
        for path in sorted(folder.glob(pattern))
    ]
    return _hash([sys.version, os.environ.get("CDLIB_DATA", ""), files])


def key(job: Job, around: str) -> str:
    """Return the name under which a job's run is kept."""
    return _hash([[cell.source for cell in notebooks.code_cells(job.chapter.source)], job.parameters, around])


class _Run:
    """One chapter in its process, with a folder of its own. `close` leaves nothing of either."""

    def __init__(self, job: Job, path: Path, root: Path) -> None:
        self.job, self.path = job, path
        self.cell = -1  # the last one that has started
        self.failure: str | None = None
        self.bar: Any = None
        self.started = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix=f".{job.chapter.name}.", dir=path.parent))
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        given = (self.folder, root / "notebooks", job.changed, _environment(self.folder), theirs)
        self.process = context.Process(target=worker.run, args=given, daemon=True)
        try:
            nbformat.write(job.chapter.source, self.folder / "in.ipynb")
            self.process.start()
            theirs.close()
        except BaseException:
            self.close()
            raise

    def goes_on(self) -> bool:
        """Take one message of the process and return whether more will come."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            message = "the process that ran it died (out of memory, or killed)"
        if isinstance(message, int):
            self.cell = message
            return True
        self.failure = message
        return False

    def result(self) -> Result:
        """Keep the executed notebook, or put what a failed one left where it can be looked at."""
        job, seconds = self.job, round(time.monotonic() - self.started, 1)
        out = self.folder / "out.ipynb"
        if self.failure is None:
            record = {"profile": job.profile, "parameters": job.parameters, "seconds": seconds}
            notebooks.write(notebooks.assemble(job.chapter.source, notebooks.read(out), record), self.path)
            _prune(self.path)
            return Result(job, self.path, seconds)
        failed = self.path.with_name(f"{job.chapter.name}.failed.ipynb")
        failed.unlink(missing_ok=True)
        if out.exists():
            os.replace(out, failed)
        return Result(job, failed, seconds, error=self._explain(self.failure))

    def close(self) -> None:
        """End the process and all that it started, at once: a kernel is in a session of its own."""
        if self.process.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [psutil.Process(self.process.pid)]
                family[0].suspend()  # it starts nothing more
                family += family[0].children(recursive=True)
                for member in reversed(family):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
            self.process.join()
        self.pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _explain(self, failure: str) -> str:
        """Return one line that says in which cell the chapter failed and why."""
        chapter = self.job.chapter
        where, why = f"notebooks/{chapter.path.name}", " ".join(failure.split())[:300]
        cells = chapter.source.cells
        [parameters] = [index for index, cell in enumerate(cells) if "parameters" in notebooks.tags(cell)]
        last = self.cell - (bool(self.job.changed) and self.cell > parameters)  # papermill adds a cell there
        code = [cell.source for cell in cells[: last + 1] if cell.cell_type == "code"]
        if not code:
            log = self.folder / "log"
            lines = log.read_text(errors="replace").split("\n") if log.exists() else []
            return ": ".join([where, why, *[line.strip() for line in lines if line.strip()][-1:]])
        text, start, end = chapter.path.read_text(encoding="utf-8", errors="replace"), 0, 0
        for source in code:
            start = text.find(source, end)
            end = max(end, start + len(source))
        place = f"{where}:{text.count(chr(10), 0, start) + 1}" if start >= 0 else where
        return f"{place}: code cell {len(code)} ({notebooks.first_line(code[-1])}): {why}"


def _kept(job: Job, path: Path) -> Result | None:
    """Return the kept run under the chapter's present text, if there is one and it is whole."""
    try:
        old = notebooks.read(path)
        shown = notebooks.assemble(job.chapter.source, old, old.metadata.cdlib)
        result = Result(job, path, float(old.metadata.cdlib["seconds"]), cached=True)
    except Exception:  # there is none; or it is damaged in whatever way, and is made again
        return None
    notebooks.write(shown, path)
    os.utime(path)
    return result


def _prune(latest: Path) -> None:
    """Remove the oldest of a chapter's kept runs, never the latest; a date in the future says nothing, so it is old."""
    now = time.time()
    pattern = latest.name.split(".")[0] + f".{'[0-9a-f]' * 16}.ipynb"
    others = {path: path.stat().st_mtime for path in latest.parent.glob(pattern) if path != latest}
    for path in sorted(others, key=lambda path: others[path] if others[path] <= now else 0)[: -(KEPT - 1)]:
        path.unlink(missing_ok=True)


def _environment(folder: Path) -> dict[str, str]:
    """Return what a kernel's environment gets: one thread, this Python, and nothing of the user's own IPython settings.

    A chapter runs in another folder than the user's, so that relative places become absolute.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    data = os.environ.get("CDLIB_DATA")
    return {
        **{f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
        **({"CDLIB_DATA": str(Path(data).expanduser().absolute())} if data else {}),
        "PYTHONWARNINGS": "ignore:IProgress not found",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONHASHSEED": "0",
    }


def _label(job: Job) -> str:
    return f"{job.chapter.number} {job.chapter.title}"


def _hash(what: Any) -> str:
    return digest([json.dumps(what, sort_keys=True)])[:16]
