"""What compression changed and what not: measurements side by side, unless they were not taken alike.

`compare` is of two, `table` is the table that ends every chapter. `cdlib.plots.comparison` draws what they return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from html import escape
from typing import ClassVar

import numpy as np
import pandas as pd

from cdlib.complexity import in_units
from cdlib.errors import CdlibError, check_choice
from cdlib.report.measurement import QUANTITIES, Measurement, shape_text
from cdlib.report.significance import Paired, mcnemar

DISTURBED = (
    "The machine was busy: the median is over 1.3 times the fastest run, or p95 over twice the median. "
    "Rather trust recorded times, which cdlib results lists."
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What became of a network: `before` and `after`, their change, and whether the test images can tell them apart."""

    before: Measurement  #: Of the original network.
    after: Measurement  #: Of the compressed one, on the same data, input and machine.
    #: Its index has the names of `QUANTITIES` known of both. Its columns are `before`, `after`, `change` (difference)
    #: and `relative` (difference over before), in raw units: bytes, counts, milliseconds; the accuracy is a share, its
    #: change times 100 is percentage points.
    frame: pd.DataFrame = field(compare=False)
    paired: Paired | None  #: McNemar's test on the images that only one of the two gets right; None without accuracies.

    @property
    def interleaved(self) -> bool:
        """Whether both latencies come from one interleaved run; otherwise a busy moment may favour one of them."""
        return self.before.session == self.after.session

    def text(self) -> pd.DataFrame:
        """Return the frame as text in decimal units: columns `before`, `after`, `change`, a row per quantity."""
        rows = {QUANTITIES[str(name)][0]: _texts(str(name), row) for name, row in self.frame.iterrows()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["before", "after", "change"])

    def __str__(self) -> str:
        lines = [f"{self.before.name} -> {self.after.name}", self.text().to_string(), *self._notes()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "<br>".join(self._notes())
        return f"{self.text().to_html()}<p>{self.before.name} → {self.after.name}<br>{notes}</p>"

    def _notes(self) -> list[str]:
        notes = [f"{self.before.machine}; input {shape_text(self.before.input_shape)}; {self.before.runs} runs"]
        if not self.interleaved:
            notes.append("latencies from separate runs: compare them with care")
        intervals = self.before.interval(), self.after.interval()
        if self.paired is not None and intervals[0] and intervals[1]:
            spans = [f"{100 * low:.2f}-{100 * high:.2f} %" for low, high in (intervals[0], intervals[1])]
            notes.append(f"accuracy on {self.before.data}, 95 % intervals {spans[0]} and {spans[1]}")
            notes.append(str(self.paired))
        return notes


class CommonTable(pd.DataFrame):
    """A DataFrame that shows itself in three significant digits, each time of a busy machine with a star and a note."""

    disturbed: Sequence[str] = ()  #: The rows whose times are those of a busy machine.
    _metadata: ClassVar = ["disturbed"]

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame  # a part of it is shown as any other frame

    def text(self) -> pd.DataFrame:
        """Return what is shown, as text."""
        shown = pd.DataFrame(self).map(lambda value: value if isinstance(value, str) else _digits(value)).astype(object)
        for time in {"p50 (ms)", "p95 (ms)"}.intersection(shown):
            shown.loc[list(self.disturbed), time] += "*"
        return shown

    def __repr__(self) -> str:
        return "\n".join([self.text().to_string(), *([f"* {DISTURBED}"] if self.disturbed else [])])

    def _repr_html_(self) -> str:
        text = self.text()
        lines = ["".join(f'<th scope="col">{escape(title)}</th>' for title in ("model", *text))]
        for name, cells in text.iterrows():
            row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            lines.append(f'<th scope="row">{escape(str(name))}</th>{row}')
        head, *body = (f"<tr>{line}</tr>" for line in lines)
        note = f"<p>* {escape(DISTURBED)}</p>" if self.disturbed else ""
        rows = "\n".join(body)
        return f'<table class="dataframe">\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table>{note}'


def compare(before: Measurement, after: Measurement) -> Comparison:
    """Put two measurements side by side, of the original and the compressed network.

    A CdlibError if they were measured on different data, inputs or machines.
    """
    _check_alike([before, after])
    old, new = before.quantities(), after.quantities()
    known = [name for name in QUANTITIES if name in old and name in new]
    sides = {"before": [old[name] for name in known], "after": [new[name] for name in known]}
    # As objects, so that a count stays an integer next to an accuracy.
    frame = pd.DataFrame(sides, index=pd.Index(known, name="quantity"), dtype=object)
    frame["change"] = frame["after"] - frame["before"]
    frame["relative"] = frame["change"].astype(float) / frame["before"].astype(float).replace(0, np.nan)
    paired = None
    if before.correct is not None and after.correct is not None:
        paired = mcnemar(before.correct, after.correct)
    return Comparison(before, after, frame, paired)


def table(measurements: Mapping[str, Measurement], *, nominal: Mapping[str, str] | None = None) -> CommonTable:
    """Return the book's common table: a row per network, decimal units, what is claimed beside what is measured.

    It is shown in three significant digits. A star at a network's times, and a note below, say that the machine was
    busy: the median is over 1.3 times the fastest run, or p95 over twice the median (`Measurement.disturbed`).

    Parameters
    ----------
    measurements : mapping of str to Measurement
        As `measure` returns them; two such mappings may be merged if they were taken alike.
    nominal : mapping of str to str, optional
        What a method says it did to a network, for example "70 % sparse" or "8 bits"; blank where not given.

    Returns
    -------
    CommonTable
        A `pandas.DataFrame`. Index `model`. Columns: `nominal` (if given), `accuracy (%)` (if measured), `file (MB)`,
        `parameters (M)`, `non-zero (M)`, `MACs (M)`, `p50 (ms)`, `p95 (ms)`, `peak memory (MB)` (measured), as
        numbers of full precision.

    Raises
    ------
    CdlibError
        If there are none, if they were measured on different data, inputs or machines, or if `nominal` names another
        network.
    """
    if not measurements:
        raise CdlibError("no measurements; give at least one.")
    for name in nominal or {}:
        check_choice("model", name, measurements)
    _check_alike(list(measurements.values()))
    columns = {
        "accuracy (%)": ("accuracy", 0.01),
        "file (MB)": ("file_bytes", 1e6),
        "parameters (M)": ("params", 1e6),
        "non-zero (M)": ("nonzero_params", 1e6),
        "MACs (M)": ("macs", 1e6),
        "p50 (ms)": ("latency_p50_ms", 1),
        "p95 (ms)": ("latency_p95_ms", 1),
        "peak memory (MB)": ("peak_memory_bytes", 1e6),
    }
    rows = {
        name: {title: known[key] / unit if key in known else np.nan for title, (key, unit) in columns.items()}
        for name, known in ((name, item.quantities()) for name, item in measurements.items())
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").dropna(axis="columns", how="all")
    if nominal is not None:
        frame.insert(0, "nominal", [nominal.get(name, "") for name in measurements])
    found = CommonTable(frame)
    found.disturbed = [name for name, item in measurements.items() if item.disturbed]
    return found


def _check_alike(measurements: list[Measurement]) -> None:
    """Raise unless all were measured on the same data, input and machine."""
    first = measurements[0]
    for other in measurements[1:]:
        for what, one, two in (
            ("data", first.data, other.data),
            ("inputs", shape_text(first.input_shape), shape_text(other.input_shape)),
            ("machines or threads", first.machine, other.machine),
        ):
            if one != two:
                raise CdlibError(
                    f"cannot compare {first.name!r} with {other.name!r}: measured on different {what} "
                    f"({one} against {two}); measure both in one call of measure()."
                )


def _texts(name: str, row: pd.Series) -> tuple[str, str, str]:
    """Return before, after and change of one row of a comparison as text."""
    unit = QUANTITIES[name][1]
    if unit == "%":
        change = f"{100 * row['change']:+.2f} points"
        return f"{100 * row['before']:.2f} %", f"{100 * row['after']:.2f} %", change if row["change"] else "unchanged"
    before, after, change = (_text(row[column], unit) for column in ("before", "after", "change"))
    if not row["change"]:
        return before, after, "unchanged"
    return before, after, f"{'+' if row['change'] > 0 else ''}{change} ({100 * row['relative']:+.1f} %)"


def _text(value: float, unit: str) -> str:
    return f"{value:.3g} ms" if unit == "ms" else in_units(int(value), unit)


def _digits(value: float) -> str:
    """Return a number in three significant digits and without an exponent: 97.8, 0.0430, 1230."""
    return "" if np.isnan(value) else f"{Decimal(f'{value:.2e}'):f}"
