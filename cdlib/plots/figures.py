"""The figures of profiles, comparisons and runs that several chapters share.

A chapter's one-off figures stay in the chapter. Nothing here shows a figure: the notebook does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from cdlib.complexity import Profile, in_units
from cdlib.errors import CdlibError, check_choice
from cdlib.plots.book_style import COLOURS, INK, MARKERS, WIDTH, new_axes
from cdlib.plots.point_labels import label_points
from cdlib.report import Comparison

LABELS = {
    "macs": "MACs",
    "flops": "FLOPs",
    "params": "parameters",
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "peak_activation_bytes": "peak memory",
}


def bubbles(
    layers: pd.DataFrame, *, x: str = "flops", y: str = "activation_bytes", size: str = "params", ax: Axes | None = None
) -> Axes:
    """Draw a network's layers as bubbles: work against memory, the area of a bubble proportional to its parameters.

    Layers without work are left out. Layers at the same place lie on each other, darker, and share a label. The axes
    have one collection, whose offsets are the layers' (x, y) in the table's order.

    Parameters
    ----------
    layers : pandas.DataFrame
        `Profile.layers`, or a part of it; its index gives the labels.
    x, y, size : str
        Columns.
    ax : Axes, optional
        Where to draw; default a new figure.

    Raises
    ------
    CdlibError
        If a column is unknown or no layer does any work.

    References
    ----------
    The figure is modelled on Figure 1 of Zawish, Davy and Abraham (2022), arXiv:2208.12816.
    """
    for column in (x, y, size):
        check_choice("column", column, layers.columns)
    working = layers[(layers[x] > 0) & (layers[y] > 0)]
    if working.empty:
        raise CdlibError(f"no layer has both {x} and {y}; there is nothing to draw.")
    axes = ax or new_axes()
    area = 900 * working[size].to_numpy(float) / max(working[size].max(), 1) + 8  # the 8 keeps the least visible
    at = working[x].to_numpy(float), working[y].to_numpy(float)
    axes.scatter(*at, s=area, marker="o", color=COLOURS[0], alpha=0.55, edgecolor="black")
    named = {column: LABELS.get(column, column) for column in (x, y, size)}
    axes.set(xlabel=named[x], ylabel=named[y], title=f"area: {named[size]}")
    axes.margins(0.12)
    for axis, column in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_formatter(EngFormatter("B" if column.endswith("_bytes") else ""))  # 10 k, 2 M, 300 kB
    label_points(axes, working[[x, y]], area)
    return axes


def timeline(profile: Profile, *, ax: Axes | None = None) -> Axes:
    """Draw the bytes of activations alive while each operator of a profile runs, into `ax` or a new figure.

    The peak is marked with its operator and layer. The axes have one step patch (the memory) and one annotation (the
    peak). A CdlibError if the network has no operators.
    """
    steps = profile.timeline
    if steps.empty:
        raise CdlibError(f"the profile of {profile.name} has no operators; there is nothing to draw.")
    axes = ax or new_axes()
    live = steps["live_bytes"].to_numpy(float)
    peak = int(live.argmax())
    axes.stairs(live, fill=True, color=COLOURS[0], alpha=0.55)
    axes.stairs(live, color=COLOURS[0], linestyle="-", baseline=None)
    axes.plot(peak + 0.5, live[peak], marker="v", color="black", linestyle="none", clip_on=False)
    left = peak > len(live) / 2
    where = steps.iloc[peak]
    axes.annotate(
        f"peak {in_units(int(live[peak]), 'B')}\n{where['operator']} in {where['layer']}",
        (peak + 0.5, live[peak]),
        xytext=(-10 if left else 10, 0),
        textcoords="offset points",
        horizontalalignment="right" if left else "left",
        verticalalignment="bottom",
    )
    axes.set(xlabel="operator, in the order of the run", ylabel="live activations")
    axes.set(xlim=(0, len(live)), ylim=(0, 1.25 * live.max()))
    axes.yaxis.set_major_formatter(EngFormatter("B"))
    return axes


def strips(runs: Mapping[str, Iterable[float]], *, ax: Axes | None = None) -> Axes:
    """Draw a column of marks for each method, one mark a run, and a bar at their mean, into `ax` or a new figure.

    The values of a method are in any order, and its marks stand beside one another. The axes have a line and a
    collection per method, in the order of `runs`, at x = 0, 1, 2 and so on. A CdlibError if there is no method, or one
    without runs.
    """
    columns = {name: np.asarray(list(values), dtype=float) for name, values in runs.items()}
    for name, values in columns.items() or {"": np.empty(0)}.items():
        if not len(values):
            raise CdlibError(f"no runs of {name!r} to draw: give at least one of each.")
    axes = ax or new_axes()
    for place, values in enumerate(columns.values()):
        beside = place + 0.36 * ((np.arange(len(values)) + 0.5) / len(values) - 0.5)
        axes.plot(beside, values, MARKERS[place % len(MARKERS)], color=COLOURS[0], linestyle="none", markersize=4.5)
        axes.hlines(values.mean(), place - 0.33, place + 0.33, color="black", linewidth=2)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.grid(axis="x", visible=False)
    return axes


def comparison(compared: Comparison) -> Figure:
    """Draw what is left of each quantity after compression: a bar per row, from 0 to the ratio after/before.

    A filled bar got smaller, a hatched one larger, and an empty one did not move by half a per cent. `compared` is what
    `cdlib.report.compare` returns. The figure's axes hold the bars from the top down, with the ratios as widths; none
    where `before` is 0.
    """
    frame, text = compared.frame, compared.text()
    ratios = frame["after"].astype(float) / frame["before"].astype(float).replace(0, np.nan)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.42 * len(frame)), layout="constrained")
    axes.axvline(1, color=INK, linestyle="-", linewidth=1, marker="none")
    for row, ratio in enumerate(ratios):
        colour, hatch = (COLOURS[0], "") if ratio < 0.995 else (COLOURS[2], "//") if ratio > 1.005 else ("white", "")
        axes.barh(row, ratio, height=0.55, color=colour, hatch=hatch or None, edgecolor="black", linewidth=1)
        axes.annotate(
            _change(ratio, str(text["change"].iloc[row])),
            (ratio, row),
            xytext=(5, 0),
            textcoords="offset points",
            verticalalignment="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    labels = [f"{name}\n{line['before']} → {line['after']}" for name, line in text.iterrows()]
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="after / before", xlim=(0, 1.4 * ratios.max()), ylim=(len(labels) - 0.5, -0.5))
    axes.set_title(f"{compared.before.name} → {compared.after.name}")
    axes.grid(axis="y", visible=False)
    return figure


def _change(ratio: float, change: str) -> str:
    """Return what stands beside a bar: percentage points as they are, "unchanged", else the ratio."""
    if change.endswith("points") or change == "unchanged":
        return change
    return "" if np.isnan(ratio) else f"× {ratio:.2f}" if ratio > 0.1 else f"× {ratio:.2g}"
