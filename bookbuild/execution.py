"""Runs chapters through papermill, a process and a thread each, and keeps what they gave while nothing changes.

A kept run is named by a hash of the chapter's code cells, its parameters, the package's source, the recorded results
and the lock file: editing a chapter's prose re-executes nothing. Files appear whole or not at all, so a run can be
stopped at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cdlib
from bookbuild import notebooks
from bookbuild.chapters import Chapter, Value
from bookbuild.progress import Progress
from cdlib.errors import CdlibError

KEPT = 8  # runs kept of one chapter
POLL_S = 0.1


@dataclass(frozen=True)
class Job:
    """One chapter with every parameter it is to run with."""

    chapter: Chapter
    profile: str
    parameters: dict[str, Value]


@dataclass(frozen=True)
class Result:
    """What running one chapter gave.

    Attributes
    ----------
    chapter : Chapter
        The chapter.
    path : Path
        The executed notebook; of a chapter that failed, as far as it came.
    seconds : float
        How long it ran, if `cached` when it last did.
    cached : bool
        Nothing had changed, so nothing ran.
    parameters : dict
        All parameters, as run.
    error : str or None
        One line that says where and why it failed.
    """

    chapter: Chapter
    path: Path
    seconds: float
    cached: bool
    parameters: dict[str, Value]
    error: str | None = None


def execute(jobs: list[Job], root: Path, workers: int, progress: bool) -> list[Result]:
    """Run the jobs that have no kept run, `workers` at a time, and return all results in the order of the jobs.

    Parameters
    ----------
    jobs : list of Job
        What to run; names and values are taken as checked.
    root : Path
        The folder of the book. Kept runs lie in its ``_build/executed``.
    workers : int
        Processes at a time.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    CdlibError
        If that folder cannot be written to.
    """
    folder = root / "_build" / "executed"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CdlibError(
            f"cannot write to {folder}: {error.strerror}; make it writable or use another checkout."
        ) from error
    around = surroundings(root)
    results: dict[int, Result] = {}
    waiting: list[tuple[int, _Run]] = []
    running: list[tuple[int, _Run]] = []
    with Progress(progress) as show:
        for index, job in enumerate(jobs):
            run = _Run(job, root, folder / f"{job.chapter.name}.{key(job, around)}.ipynb")
            kept = run.kept()
            if kept:
                results[index] = kept
                show.done(kept)
            else:
                waiting.append((index, run))
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(waiting.pop(0))
                    running[-1][1].start()
                time.sleep(POLL_S)
                for index, run in [entry for entry in running if entry[1].ended()]:
                    results[index] = run.finish()
                    running.remove((index, run))
                    show.done(results[index])
                show.update([(run.job.chapter, run.cells_done(), run.cells) for _, run in running], len(waiting))
        finally:
            for _, run in running:
                run.stop()
    return [results[index] for index in sorted(results)]


def surroundings(root: Path) -> str:
    """Return a hash of what all chapters depend on: the package, the records, the versions, the data's place."""
    results = Path(os.environ.get("CDLIB_RESULTS") or root / "results")
    package = Path(cdlib.__file__).parent
    found = [(package, "**/*.py"), (results, "**/*.json"), (root, "requirements.lock")]
    files = [
        [path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
        for folder, pattern in found
        for path in sorted(folder.glob(pattern))
    ]
    return _digest([sys.version, os.environ.get("CDLIB_DATA", ""), files])


def key(job: Job, around: str) -> str:
    """Return the name under which a job's run is kept."""
    code = [cell.source for cell in job.chapter.source.cells if cell.cell_type == "code"]
    return _digest([code, job.parameters, around])


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class _Run:
    """One chapter on its way from the text to a kept notebook."""

    job: Job
    root: Path
    path: Path
    folder: Path = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    started: float = field(init=False)

    @property
    def cells(self) -> int:
        return len(self.job.chapter.source.cells)

    def kept(self) -> Result | None:
        """Return the kept run under the present text, if there is one."""
        if not self.path.exists():
            return None
        old = notebooks.read(self.path)
        record = notebooks.record_of(old)
        notebooks.write(notebooks.assemble(self.job.chapter.source, old, record), self.path)
        os.utime(self.path)
        return Result(self.job.chapter, self.path, record["seconds"], True, self.job.parameters)

    def start(self) -> None:
        import nbformat
        import yaml

        chapter = self.job.chapter
        self.folder = Path(tempfile.mkdtemp(prefix=f".{chapter.name}.", dir=self.path.parent))
        nbformat.write(chapter.source, self.folder / "in.ipynb")
        changed = {name: value for name, value in self.job.parameters.items() if value != chapter.parameters[name]}
        command = [
            sys.executable,
            "-m",
            "papermill",
            "in.ipynb",
            "out.ipynb",
            "--kernel",
            "python3",
            "--no-progress-bar",
        ]
        command += ["--cwd", str(self.root / "notebooks"), "--parameters_yaml", yaml.safe_dump(changed)]
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=_environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started = time.monotonic()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def cells_done(self) -> int:
        """Return how many cells are done: papermill saves after each."""
        out = self.folder / "out.ipynb"
        return out.read_bytes().count(b'"status": "completed"') if out.exists() else 0

    def finish(self) -> Result:
        """Keep the executed notebook, or put what a failed one left where it can be looked at."""
        job, seconds = self.job, round(time.monotonic() - self.started, 1)
        out = self.folder / "out.ipynb"
        if self.process.returncode == 0:
            record = {"profile": job.profile, "parameters": job.parameters, "seconds": seconds}
            notebooks.write(notebooks.assemble(job.chapter.source, notebooks.read(out), record), self.path)
            _prune(self.path.parent, job.chapter.name)
            shutil.rmtree(self.folder)
            return Result(job.chapter, self.path, seconds, False, job.parameters)
        failed = self.path.with_name(f"{job.chapter.name}.failed.ipynb")
        if out.exists():
            os.replace(out, failed)
        error = _explain(job.chapter, failed, (self.folder / "log").read_text(errors="replace"))
        shutil.rmtree(self.folder)
        return Result(job.chapter, failed, seconds, False, job.parameters, error)

    def stop(self) -> None:
        """End the process, which ends its kernel, and leave nothing behind."""
        if not self.ended():
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of a kernel: one thread, this Python, and nothing of the user's own IPython settings.

    A chapter runs in another folder than the user's, so that relative places become absolute.
    """
    data = os.environ.get("CDLIB_DATA")
    places = {"CDLIB_DATA": str(Path(data).expanduser().absolute())} if data else {}
    threads = {f"{name}_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1") for name in ("OMP", "MKL", "OPENBLAS")}
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    fixed = {"JUPYTER_PREFER_ENV_PATH": "1", "IPYTHONDIR": str(folder / "ipython"), "PYTHONHASHSEED": "0"}
    return {**os.environ, **threads, **quiet, **fixed, **places}


def _prune(folder: Path, name: str) -> None:
    runs = sorted(folder.glob(f"{name}.*.ipynb"), key=lambda path: path.stat().st_mtime)
    for path in runs[:-KEPT]:
        path.unlink(missing_ok=True)


def _explain(chapter: Chapter, failed: Path, log: str) -> str:
    """Return one line that says in which cell a chapter failed and why."""
    where = f"notebooks/{chapter.path.name}"
    cells = notebooks.read(failed).cells if failed.exists() else []
    code = [cell for cell in cells if cell.cell_type == "code" and notebooks.INJECTED not in notebooks.tags(cell)]
    for number, cell in enumerate(code, start=1):
        error = next((output for output in cell.outputs if output.output_type == "error"), None)
        answered = "shell.execute_reply" in cell.metadata.get("execution", {})
        if error is None and (answered or not cell.source.strip()):
            continue
        why = f"{error.ename}: {_one_line(error.evalue)}" if error else "the kernel died (out of memory, or killed)"
        line = _line(chapter, cell.source)
        place = f"{where}:{line}" if line else where
        return f"{place}: code cell {number} ({notebooks.first_line(cell.source)}): {why}"
    return f"{where}: {(log.strip().splitlines() or ['papermill gave no reason'])[-1]}"


def _line(chapter: Chapter, source: str) -> int | None:
    before, found, _ = chapter.path.read_text(encoding="utf-8").partition(source)
    return before.count("\n") + 1 if found else None


def _one_line(text: str) -> str:
    return " ".join(text.split())
