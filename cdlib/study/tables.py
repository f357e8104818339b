"""Recorded runs as tables: read, described in words, network by network, with means over the seeds.

What a chapter shows of its records is made of these. Keeping records is `cdlib.study.store`'s business, comparing runs
with the line of uniform widths `cdlib.study.controls`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from cdlib.pruning import MODES
from cdlib.study import store
from cdlib.text import mean_and_spread

# How tables call what a target counts.
WORDS = {"units": "units", "params": "parameters", "macs": "MACs", "activation_bytes": "activations"}
OPTIONS = (
    *("name", "mode", "target", "stop_at", "resource", "by", "conv", "linear", "penalty", "min_width", "budget"),
    *("fine_tune.epochs", "fine_tune.lr"),
)


def recorded(experiment: str, methods: Iterable[str] | None = None) -> pd.DataFrame:
    """Return the records of an experiment as a table that has every column a chapter may ask for.

    That is what `cdlib.study.load` returns of it, or of its runs of some `methods`, with gaps where a column
    of `method.` is in no record, and four columns more: ``setting``, the method and its options in words; ``params
    left``, ``macs left`` and ``latency left``, as shares of the dense network that was measured in the same run.
    """
    records = store.load(experiment=experiment)
    needed = ["data", "model", "recipe.epochs", "recipe.lr", "accuracy", *(f"method.{name}" for name in OPTIONS)]
    costs = {"params left": "params", "macs left": "macs", "latency left": "latency_p50_ms"}
    needed += [name for cost in costs.values() for name in (cost, f"dense_{cost}")]
    records = records.reindex(columns=[*dict.fromkeys([*records.columns, *needed])])
    if methods is not None:
        records = records[records["method.name"].isin(list(methods))]
    shares = {left: records[cost].astype(float) / records[f"dense_{cost}"] for left, cost in costs.items()}
    return records.assign(setting=[described(dict(row)) for _, row in records.iterrows()], **shares)


def described(run: Mapping[str, Any]) -> str:
    """Return the method of a recorded run and its options in words, for example "dhspg, 50 % fewer units".

    `run` is a row of `recorded`, or a part of it.
    """
    given: dict[str, Any] = {name: run.get(f"method.{name}") for name in OPTIONS}
    own = {name: value for name, value in given.items() if not pd.isna(value)}
    words = [str(own.get("name", "")).replace("_", " ")]
    mode = own.get("mode")
    if own.get("name") == "complexity_driven":
        words[0] += f" by {mode}"
    if "by" in own:
        words.append(own["by"].upper() if own["by"] in ("l1", "l2", "bn") else own["by"])
    if "target" in own:
        counted = own.get("stop_at") or own.get("resource") or MODES.get(str(mode), "units")
        words.append(f"{100 * own['target']:.0f} % fewer {WORDS[counted]}")
    words += [f"{100 * own[kind]:.0f} % of {kind}" for kind in ("conv", "linear") if kind in own]
    words += [f"{name} {own[name]:{form}}" for name, form in (("penalty", "g"), ("min_width", ".0f")) if name in own]
    if "fine_tune.epochs" in own:
        rate = " at the full rate" if own.get("fine_tune.lr") == run.get("recipe.lr") else ""
        words.append(f"{own['fine_tune.epochs']:.0f} more epochs{rate}")
    if "budget" in own:
        words.append("Scratch-B")
    return ", ".join(words)


def networks(records: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the records of each network apart: what was trained alike, on the same data, for the same time.

    `records` are those of `recorded`. Each has a title like "vgg_mini, cifar10, 10 epochs", in alphabetical order of
    data and network; that of a second recipe of the same length has its number behind.
    """
    same = [name for name in records.columns if name.split(".")[0] in ("options", "recipe")]
    training = records[same].apply(lambda row: " ".join(map(str, row)), axis=1) if len(records) else records["model"]
    found: dict[str, pd.DataFrame] = {}
    for (data, model, _), part in records.groupby(["data", "model", training]):
        title = f"{model}, {data}, {part['recipe.epochs'].iloc[0]:.0f} epochs"
        others = sum(known.startswith(title) for known in found)
        found[f"{title}, recipe {others + 1}" if others else title] = part
    return found


def summary(
    runs: pd.DataFrame, by: str | list[str], columns: Mapping[str, tuple[str, float, int]], *, count: str = "seeds"
) -> pd.DataFrame:
    """Return means and standard deviations of runs as text, a row per group of them.

    Parameters
    ----------
    runs : DataFrame
        A row per run.
    by : str or list of str
        The columns by which they are grouped; the groups stay in the order in which they come. A gap is a group too.
    columns : mapping of str to (str, float, int)
        What is shown: title, to the column of `runs`, the factor of its values and the digits after the point. Where
        nothing is known, "-" is shown.
    count : str, default "seeds"
        Title of the first column, the number of runs.
    """
    rows: dict[Any, dict[str, Any]] = {}
    for group, part in runs.groupby(by, sort=False, dropna=False):
        rows[group] = {count: len(part)}
        for title, (name, factor, digits) in columns.items():
            rows[group][title] = mean_and_spread(part.get(name, ()), factor=factor, digits=digits)
    return pd.DataFrame(rows, index=[count, *columns]).T.rename_axis(by)
