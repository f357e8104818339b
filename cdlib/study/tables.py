"""Recorded runs as tables: read, described in words, network by network, with means over the seeds.

What a chapter shows of its records is made of these. Keeping records is `cdlib.study.store`'s business, comparing runs
with the line of uniform widths `cdlib.study.controls`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from cdlib.pruning import MODES
from cdlib.report import Verdict, verdict
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


WAYS = {"float": "float", "static": "int{bits:g}", "train": "int{bits:g} trained", "share": "shared, {bits:g} bits"}
"""How `quantized` calls the ways of few bits; a search has the name of what searched."""


def quantized(*ways: str) -> pd.DataFrame:
    """Return the records of `cdlib.study.quantize_network`, or those of some of its ways, with what was done in words.

    There is every column a chapter may ask for, and four more: ``pruning``, "dense" or the method, its options and the
    training after it; ``numbers``, for example "int4 trained" or "knapsack, 3 bits"; ``training``, that of the way
    itself, or ""; and ``setting``, the three as one. What differs elsewhere, in another option or field of a recipe,
    has the same words and a number behind.
    """
    records = store.load(experiment="quantization")
    options = [f"way.{name}" for name in ("name", "bits", "way", "rounds", "draws", "recipe.epochs", "recipe.lr")]
    cuts = ("name", "by", "target", "resource", "conv", "linear", "recipe.epochs", "recipe.lr", "recipe.distill")
    needed = [
        "network",
        "data",
        "seed",
        *options,
        *(f"prune.{name}" for name in cuts),
        "accuracy",
        "file_bytes",
        "macs",
    ]
    needed += ["bit_operations", "steps", "loss", "evaluations"]
    records = records.reindex(columns=[*dict.fromkeys([*records.columns, *needed])])
    if ways:
        records = records[records["way.name"].isin(ways)]
    whole = records["way.name"].isin(["static", "train"]) & records["way.bits"].isna()
    records = records.assign(**{"way.bits": records["way.bits"].mask(whole, 8)})
    ran = [dict(row.dropna()) for _, row in records.iterrows()]
    found = {
        "pruning": [(_cut(run), _fields(run, "prune.")) for run in ran],
        "numbers": [(_numbers(run), _fields(run, "way.", but="way.recipe.")) for run in ran],
        "training": [(_training(run, "way"), _fields(run, "way.recipe.")) for run in ran],
    }
    told = records.assign(**{name: _told_apart(words) for name, words in found.items()})
    parts = zip(told["pruning"], told["numbers"], told["training"], strict=True)
    told["setting"] = [", ".join(filter(None, part)) for part in parts]
    return told.sort_values(["network", "data", "prune.name", "setting", "seed"], na_position="first")


def paired_verdict(own: pd.DataFrame, rivals: pd.DataFrame, on: list[str], margin: float) -> Verdict | None:
    """Return the verdict on the accuracies, in points, of runs and their rivals; None if there is no pair.

    A run and a rival are a pair if they have the same in the columns `on`; `margin` as for `cdlib.report.verdict`.
    """
    both = own.merge(rivals, on=on, suffixes=("", " other"))
    accuracy, other = 100 * both["accuracy"].astype(float), 100 * both["accuracy other"].astype(float)
    return verdict(accuracy, other, margin=margin) if len(both) else None


def _cut(run: Mapping[str, Any]) -> str:
    if "prune.name" not in run:
        return "dense"
    named = {"method.name": run["prune.name"], "recipe.lr": None}
    named |= {
        f"method.{name.removeprefix('prune.')}": value for name, value in run.items() if name.startswith("prune.")
    }
    return f"{described(named)}{_training(run, 'prune')}"


def _numbers(run: Mapping[str, Any]) -> str:
    form = WAYS.get(run["way.name"], f"{run.get('way.way', 'controller')}, {{bits:g}} bits")
    known = ("way.name", "way.bits", "way.way")
    more = [f"{name[4:]} {value}" for name, value in run.items() if name.startswith("way.") and name not in known]
    return ", ".join([form.format(bits=run.get("way.bits", 0)), *(text for text in more if text[:7] != "recipe.")])


def _training(run: Mapping[str, Any], of: str) -> str:
    if f"{of}.recipe.epochs" not in run:
        return ""
    teacher = " with a teacher" if run.get(f"{of}.recipe.distill") else ""
    return f" +{run[f'{of}.recipe.epochs']:g} epochs at {run[f'{of}.recipe.lr']:g}{teacher}".removeprefix(
        " " * (of == "way")
    )


def _fields(run: Mapping[str, Any], start: str, but: str = "-") -> str:
    return str({name: value for name, value in run.items() if name.startswith(start) and not name.startswith(but)})


def _told_apart(words: list[tuple[str, str]]) -> list[str]:
    """Return words, with a number behind those that stand for something else than the same words before."""
    seen: dict[str, list[str]] = {}
    found = []
    for word, exact in words:
        among = seen.setdefault(word, [])
        if exact not in among:
            among.append(exact)
        found.append(f"{word} ({place + 1})" if (place := among.index(exact)) else word)
    return found


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
