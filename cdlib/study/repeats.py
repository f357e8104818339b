"""A recorded run made again elsewhere and held against the record: what a reader does who wants to check the book."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cdlib.errors import CdlibError
from cdlib.study import store
from cdlib.study.baseline import train_and_compress
from cdlib.study.camera_trials import show_to_camera
from cdlib.study.few_bits import quantize_network
from cdlib.study.four_arms import time_arms
from cdlib.study.methods import prune_and_train
from cdlib.study.runs import Experiment, run
from cdlib.study.shipped import prune_over_grid, train_network

EXPERIMENTS: dict[str, Experiment] = {
    "baseline": train_and_compress,
    "camera": show_to_camera,
    "edge": time_arms,
    "grid": prune_over_grid,
    "networks": train_network,
    "pruning": prune_and_train,
    "quantization": quantize_network,
}
"""The function behind each folder of records."""


def repeat(key: str, record_in: Path) -> pd.DataFrame:
    """Make a recorded run again, with its parameters and seed, and set its metrics beside the recorded ones.

    Accuracies are to agree within the spread that seeds show, on the same machine and versions to the last digit; times
    are another machine's. The code is that of now: check out the record's commit for the code of then.

    Parameters
    ----------
    key : str
        Of the record, or how it begins.
    record_in : Path
        Another folder, for the new record; a run that is there is not made again, one that was stopped goes on.

    Returns
    -------
    DataFrame
        Rows are the metrics that are one number; columns `recorded` and `again`.

    Raises
    ------
    CdlibError
        If there is no such record, or several; it is of an experiment that is not in `EXPERIMENTS`; or the folder is
        that of the records.
    """
    frame = store.load()
    found = [name for name in frame.index if name.startswith(key)] if key else []
    if len(found) != 1:
        raise CdlibError(f"{key!r} begins {len(found)} of {len(frame)} keys: give one that `cdlib results` lists.")
    [name] = found
    experiment = frame.loc[name, "experiment"]
    if experiment not in EXPERIMENTS:
        raise CdlibError(f"{name} is a run of {experiment!r}, which has a program of its own: see benchmarks/.")
    place = Path(record_in).expanduser().absolute()
    if place == store.folder():
        raise CdlibError(f"{record_in} holds the records themselves: give another folder.")
    old = store.read(store.folder() / experiment / f"{name}.json")
    parameters = {key: value for key, value in old["parameters"].items() if key != "name"}  # what ships stays
    new = run(experiment, EXPERIMENTS[experiment], parameters, seed=old["seed"], record_in=place)
    both = {"recorded": _numbers(old["metrics"]), "again": _numbers(new["metrics"])}
    return pd.DataFrame(both).reindex(list(both["again"]))


def _numbers(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The metrics that are one number, also those inside others, by dotted names."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found
