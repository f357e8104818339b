"""What the command `cdlib` prints on standard output: tables for people, JSON for programs, and nothing else.

What to print is the commands' business; progress, errors and what a user's network prints go to standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cdlib

if TYPE_CHECKING:
    import pandas as pd

_reports: list[Any] = []  # where they go: the standard outputs of the commands that are running


@contextlib.contextmanager
def reserved() -> Iterator[None]:
    """Keep standard output for the functions of this module; what else is printed there goes to standard error."""
    _reports.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _reports.pop()


def say(text: object) -> None:
    """Print a line of a report."""
    print(text, file=_reports[-1])


def print_json(value: object) -> None:
    """Print a value as JSON; NaN is no JSON and an error."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Container[int] = ()) -> None:
    """Print a table, with the columns `right` aligned on the right.

    It is as wide as it needs to be, unless it goes to a terminal, where it must fit.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=_reports[-1], highlight=False)
    if not console.is_terminal:
        console.width = 100_000
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def print_frame(frame: pd.DataFrame) -> None:
    """Print a frame's columns, without its index; numbers to six significant digits, blank where there is no value."""
    import pandas as pd

    columns = [str(column) for column in frame]
    numbers = [index for index, kind in enumerate(frame.dtypes) if pd.api.types.is_numeric_dtype(kind)]
    print_table(columns, [[_cell(value) for value in row] for row in frame.itertuples(index=False)], right=numbers)


def print_layers(found: cdlib.Profile) -> None:
    """Print a row per layer of a profile, in decimal units."""
    in_units = cdlib.complexity.in_units
    counts = {"params": "", "macs": "", "weight_bytes": "B", "activation_bytes": "B", "peak_activation_bytes": "B"}
    rows = [
        [name, row["kind"], times(row["output_shape"]), *(in_units(row[key], unit) for key, unit in counts.items())]
        for name, row in found.layers.to_dict("index").items()
    ]
    headings = ["layer", "kind", "output", "params", "MACs", "weights", "activations", "peak"]
    print_table(headings, rows, right=range(3, 8))


def print_totals(found: cdlib.Profile) -> None:
    """Print the totals of a profile, in decimal units and exactly."""
    for (label, text), exact in zip(found.summary().items(), found.totals().values(), strict=True):
        say(f"  {label:20} {text:>12}  {'' if exact is None else format(exact, ','):>18}")
    say("Decimal units: k = 10^3, M = 10^6, G = 10^9.")


def print_groups(facts: dict[str, Any]) -> None:
    """Print what `cdlib groups --json` does: a row per group of channels, and how much of them can be reached."""
    yes = {True: "yes", False: "no"}
    groups = facts["groups"]
    rows = [
        [g["name"], g["units"], yes[g["prunable"]], yes[g["zero_invariant"]] if g["prunable"] else "", g["reason"]]
        for g in groups
    ]
    print_table(["group", "units", "prunable", "zero-invariant", "reason"], rows, right=[1])
    say(f"{facts['model']}, one sample of {times(facts['input'])}")
    for label, key in (("prunable", "prunable"), ("zero-invariant", "zero_invariant")):
        count, share = sum(group[key] for group in groups), facts["share"][key]
        say(f"  {label:14}  {count} of {len(groups)} groups, with {int(1000 * share) / 10} % of the parameters")


def print_pruned(facts: dict[str, Any], most: int = 6) -> None:
    """Print what `cdlib prune --json` does: units removed, counts before and after, `most` of the modules rewritten."""
    in_units = cdlib.complexity.in_units
    size, groups = times(facts["input"]), facts["groups"].values()
    removed, units = (sum(group[key] for group in groups) for key in ("removed", "units"))
    touched = sum(group["removed"] > 0 for group in groups)
    say(
        f"{facts['model']}, one sample of {size}: {removed:,} of {units:,} units removed, "
        f"from {touched} of {len(groups)} groups"
    )
    kinds = {"params": ("params", ""), "MACs": ("macs", ""), "weights": ("weight_bytes", "B")}
    rows = []
    for label, (key, unit) in kinds.items():
        before, after = facts["before"][key], facts["after"][key]
        change = f"{100 * after / before - 100:+.1f} %" if before else ""
        rows.append([label, in_units(before, unit), in_units(after, unit), change])
    print_table(["", "before", "after", "change"], rows, right=[1, 2, 3])
    names = facts["rewritten"]
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        say(
            f"{len(names)} {'module' if len(names) == 1 else 'modules'} could not follow the new widths and now "
            f"{'runs' if len(names) == 1 else 'run'} recorded operators, for inputs of {size} only: "
            f"{', '.join(names[:most])}{more}"
        )
    say(f"wrote {facts['file']}, {in_units(facts['file_bytes'], 'B')}")


def times(shape: Sequence[int]) -> str:
    """Return a shape as people write it, for example ``3x32x32``."""
    return "x".join(str(size) for size in shape)


def _cell(value: object) -> str:
    if isinstance(value, float):  # also a whole number whose column lacks others
        return "" if value != value else str(int(value)) if value.is_integer() else f"{value:.6g}"
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Return what JSON has for a path or for a number of NumPy."""
    return str(value) if isinstance(value, Path) else value.item()
