"""What the records say of a network that is to be compressed: nothing is run, everything has a reason.

Losses are those of the records' networks and data, no promise for another; the reasons say how many runs there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from cdlib.complexity import Profile, in_units
from cdlib.edge import SIZES, Device, roofline
from cdlib.errors import check_choice
from cdlib.pruning import RESOURCES
from cdlib.report import verdict
from cdlib.study import store
from cdlib.study.tables import WORDS, recorded

SHORT = ("file", "storage", "ram", "time")
LEFT = ("file left", "MACs left", "time left")


@dataclass(frozen=True, eq=False)
class Advice:
    """What to do, and why."""

    resource: str  #: What a cut should be a share of: one of `cdlib.pruning.RESOURCES`.
    reasons: list[str]  #: Sentences: of the device, of each recorded way, and for the resource.
    evidence: pd.DataFrame
    """A row per way and network that are recorded: `network`, `way`, `runs`, `change` (of accuracy, mean in points),
    `file left`, `MACs left`, `time left` (shares of the network before, NaN where not recorded), `verdict`."""


def advise(
    counted: Profile, on: Device | None = None, *, names: Iterable[str] = (), margin: float = 1.0, short: str = ""
) -> Advice:
    """Say from records and a device's card how to compress a network.

    Parameters
    ----------
    counted : cdlib.complexity.Profile
        Of the float32 network.
    on : Device, optional
        What it is for.
    names : iterable of str, optional
        What the network is called in records; those come first.
    margin : float, default 1
        How many points of accuracy may be lost, for the verdicts.
    short : {"file", "storage", "ram", "time"}, optional
        What int8 alone does not bring down enough, if that is known; else it follows from the device.

    Raises
    ------
    CdlibError
        For another `short`; or as `cdlib.study.load` and `cdlib.report.verdict`.
    """
    if short:
        check_choice("short", short, SHORT)
    found = _evidence(margin)
    found = found.sort_values("network", key=lambda column: ~column.isin(list(names)), kind="stable")
    reasons = [_fit(counted, on, dtype) for dtype in SIZES if on and f"macs_{dtype}" in on.figures()]
    for way, part in found.groupby("way", sort=False):
        words = [f"{row['network']} {row['change']:+.1f} ({_runs(row['runs'])}: {row['word']})" for row in _rows(part)]
        reasons.append(f"Recorded for {way}, change of accuracy in points: {'; '.join(words)}.")
    if found.empty:
        reasons.append("There is no record of int8 or of a cut: every step has to be tried.")
    resource, why = _resource(found, short or _tightest(counted, on))
    return Advice(resource, [*reasons, why], found.drop(columns="word").reset_index(drop=True))


def _evidence(margin: float) -> pd.DataFrame:
    """All records of static int8, of cuts by rank with a little training at a lower rate after them, and of both."""
    shipped = store.load(experiment="networks").reindex(columns=["name", "accuracy", "file_bytes", "macs"])
    shipped = shipped.dropna(subset=["name"]).drop_duplicates("name").set_index("name").add_prefix("whole_")
    both = store.load(experiment="quantization")
    needed = ["network", "accuracy", "file_bytes", "macs", "way.name", "way.bits"]
    needed += ["prune.name", "prune.target", "prune.resource"]
    options = [name for name in map(str, both) if name.startswith("way.") and name not in needed]
    both = both.reindex(columns=[*needed, *options]).join(shipped, on="network")
    plain = both["way.name"].eq("static") & both["way.bits"].fillna(8).eq(8) & both[options].isna().all(axis=1)
    both = both[plain & both["prune.name"].fillna("ranking").eq("ranking")]
    cuts = recorded("pruning", ["ranking"])
    cuts = cuts[~cuts["method.fine_tune.lr"].eq(cuts["recipe.lr"])]
    cuts = cuts.rename(
        columns={"model": "network", "params left": LEFT[0], "macs left": LEFT[1], "latency left": LEFT[2]}
    )
    both = both.assign(
        way=[_way(row["prune.target"], row["prune.resource"], "int8") for row in _rows(both)],
        **{"file left": both["file_bytes"] / both["whole_file_bytes"], "MACs left": both["macs"] / both["whole_macs"]},
    )
    cuts["way"] = [_way(row["method.target"], row["method.resource"]) for row in _rows(cuts)]
    parts = (both.rename(columns={"whole_accuracy": "before"}), cuts.rename(columns={"dense_accuracy": "before"}))
    columns = ["network", "way", "accuracy", "before", *LEFT]
    every = pd.concat([part.reindex(columns=columns).astype(dict.fromkeys(columns[2:], float)) for part in parts])
    every = every.dropna(subset=["accuracy", "before"]).sort_values("way", key=lambda way: way.map(len), kind="stable")
    table = []
    for (way, network), part in every.groupby(["way", "network"], sort=False):
        said = verdict(100 * part["accuracy"], 100 * part["before"], margin=margin)
        row = {"network": network, "way": way, "runs": len(part), "change": said.mean, **part[[*LEFT]].mean()}
        table.append({**row, "verdict": str(said), "word": said.word})
    return pd.DataFrame(table, columns=["network", "way", "runs", "change", *LEFT, "verdict", "word"])


def _rows(frame: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in frame.iterrows()]


def _way(target: float, resource: object, *more: str) -> str:
    cut = [] if target != target else [f"{100 * target:.0f} % fewer {WORDS[str(resource)]}"]
    return " and ".join([*cut, *more])


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _fit(counted: Profile, on: Device, dtype: str) -> str:
    """What the device's card says of the network, in a type."""
    weights = SIZES[dtype] * counted.params
    line = roofline(counted, on, dtype, file_bytes=weights)
    need = {"RAM": (line.fits_ram, line.ram_bytes), "storage": (line.fits_storage, weights)}
    words = {True: "fits the", False: "does not fit the", None: "stands against an unknown"}
    told = "; ".join(f"{in_units(size, 'B')} {words[fits]} {what}" for what, (fits, size) in need.items())
    return (
        f"{on.title} in {dtype}: at least {line.latency_ms:.3g} ms (estimated), most of it "
        f"{'arithmetic' if line.bound == 'macs' else 'moving bytes'}; {told}."
    )


def _tightest(counted: Profile, on: Device | None) -> str:
    """What a device is short of in int8, or else what most time goes into there."""
    if on is None or on.macs_int8 is None:
        return "time"
    line = roofline(counted, on, "int8", file_bytes=counted.params)
    if line.fits_storage is False or line.fits_ram is False:
        return "storage" if line.fits_storage is False else "ram"
    return "file" if line.bound == "bytes" else "time"


def _resource(found: pd.DataFrame, short: str) -> tuple[str, str]:
    """What to cut, and why: for time, what costs the least accuracy by the records."""
    if short in ("file", "storage"):
        return "params", "Cut parameters: bytes of weights are what is short or slow."
    if short == "ram":
        return "activation_bytes", "Cut activations: they are what the working memory holds."
    timed = found[found["time left"].lt(1)]
    by = {resource: timed[[way.endswith(f"fewer {WORDS[resource]}") for way in timed["way"]]] for resource in RESOURCES}
    by = {resource: part for resource, part in by.items() if len(part)}
    same = set.intersection(*(set(part["network"]) for part in by.values())) if by else set()
    by = {resource: part[part["network"].isin(same)] for resource, part in by.items() if same}
    if len(by) < 2:
        return "macs", "Cut MACs: time goes into them, and no two recorded cuts of a network say otherwise."
    price = {name: -part["change"].sum() / (100 * (1 - part["time left"]).sum()) for name, part in by.items()}
    best = min(price, key=price.__getitem__)
    told = ", ".join(f"{WORDS[name]} {price[name]:.2f} ({_runs(int(by[name]['runs'].sum()))})" for name in by)
    return best, (
        f"Cut {WORDS[best]}: points of accuracy lost for 1 % of time saved, in recorded cuts of "
        f"{' and '.join(sorted(same))}: {told}."
    )
