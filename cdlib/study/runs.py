"""One run of an experiment: parameters and a seed in, one record out, done once and never again.

What an experiment does is a function's business; how records are kept is `cdlib.study.store`'s. Here a function is
called at most once per experiment, parameters and seed: what is recorded is skipped, what was killed is called again
with the same folder to resume from, and what fails leaves no record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from cdlib.errors import CdlibError
from cdlib.study import store
from cdlib.study.provenance import provenance
from cdlib.study.store import Record, checked

Experiment = Callable[[dict[str, Any], int, Path], Mapping[str, Any]]


def run(
    experiment: str,
    function: Experiment,
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    record_in: Path | None = None,
) -> Record:
    """Return the record of a run; make it first if there is none.

    The function is called as ``function(parameters, seed, workdir)``. Python's, numpy's and torch's random generators
    are seeded with `seed` for the call and put back afterwards, so that a caller goes on alike whether the run was
    recorded or not.

    The working folder, ``_build/work/EXPERIMENT/KEY`` beside the folder of the records, stays the same until the
    record is written and is then removed: a function that keeps a checkpoint in it resumes after a kill. If another
    process is at the same run, this one waits and returns the other's record.

    Parameters
    ----------
    experiment : str
        Names the folder of the records.
    function : callable
        Returns the metrics: a dict of JSON values, none of them NaN. A metric or parameter
        `fingerprint` is kept as the data's.
    parameters : mapping
        JSON values; together with the experiment and the seed they name the run (`store.key`).
    seed : int, default 0
        Part of the run's name, and what the generators are seeded with.
    record_in : Path, optional
        The folder of the records; default `store.folder()`.

    Returns
    -------
    dict
        `key`, `experiment`, `parameters`, `seed`, `metrics`, `wall_s` (of the last attempt), `provenance`. The
        provenance's `resumed` lists date and code of earlier attempts that did not finish.

    Raises
    ------
    CdlibError
        If the run cannot be named or the folders cannot be written to (before any work), or if the metrics cannot be
        recorded (the working folder then stays).
    """
    results = (record_in or store.folder()).absolute()  # the function may change the current folder
    name = store.key(experiment, parameters, seed)
    if record := store.find(experiment, parameters, seed, results):
        return record
    lock = _lock(results, experiment, name)
    work = lock.with_suffix("")
    store.check_writable(results / experiment)
    store.check_writable(work.parent)
    with alone(lock):
        if record := store.find(experiment, parameters, seed, results):
            return record
        record = _make(experiment, function, checked(parameters, "parameters"), seed, work)
        record["key"] = name
        with contextlib.suppress(FileExistsError):  # recorded meanwhile, by a process on another machine
            store.write(record, results)
        shutil.rmtree(work, ignore_errors=True)
        lock.unlink(missing_ok=True)
    return store.read(results / experiment / f"{name}.json")


def busy(experiment: str, parameters: Mapping[str, Any], seed: int) -> bool:
    """Tell whether another process is at a run now, whose record will be in `store.folder()`."""
    lock = _lock(store.folder(), experiment, store.key(experiment, parameters, seed))
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _lock(results: Path, experiment: str, name: str) -> Path:
    """Return the lock of a run; its working folder stands beside it, under the same name without the ending."""
    return results.parent / "_build" / "work" / experiment / f"{name}.lock"


def _make(experiment: str, function: Experiment, parameters: dict[str, Any], seed: int, workdir: Path) -> Record:
    """Call the function in its working folder and return all of the record but its key."""
    workdir.mkdir(exist_ok=True)
    origin = provenance()
    earlier = _attempt(workdir / ".attempts", {name: origin[name] for name in ("date", "commit", "dirty")})
    start = time.perf_counter()
    with _seeded(seed):
        metrics = function(checked(parameters, "parameters"), seed, workdir)
    wall_s = round(time.perf_counter() - start, 3)
    try:
        metrics = checked(metrics, "metrics")
    except CdlibError as error:
        raise CdlibError(f"experiment {experiment!r}, seed {seed}: {error} Nothing is recorded.") from error
    data = next((values["fingerprint"] for values in (metrics, parameters) if "fingerprint" in values), None)
    return {
        "experiment": experiment,
        "parameters": parameters,
        "seed": seed,
        "metrics": metrics,
        "wall_s": wall_s,
        "provenance": {**origin, "data": data, "resumed": earlier},
    }


def _attempt(log: Path, origin: dict[str, Any]) -> list[dict[str, Any]]:
    """Note in a file that an attempt starts, and return the earlier ones."""
    earlier = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        with contextlib.suppress(ValueError):  # cut short by a kill
            earlier.append(json.loads(line))
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(origin) + "\n")
    return earlier


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock that the system releases when its process dies; wait for whoever holds it."""
    guard = FileLock(lock)
    try:
        guard.acquire(timeout=0)
    except Timeout:
        logging.getLogger(__name__).warning("another process is at run %s; waiting for its record", lock.stem)
        guard.acquire()
    try:
        yield
    finally:
        guard.release()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators for a `with` block and restore their states after it."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
