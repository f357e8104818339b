"""The figures that several chapters share, and the one style of all of the book's figures.

A figure has a white ground, which a dark page shows as a card; is legible at a phone's width, in grey and to the
colour-blind (every series has a marker and a line style of its own, besides its colour); and is drawn as vectors. A
chapter's one-off figures stay in the chapter. Nothing here shows a figure: the notebook does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cdlib.complexity import Profile, in_units
from cdlib.errors import CdlibError, unknown
from cdlib.plots.point_labels import label_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdlib.grouping import Groups

# Paul Tol's high-contrast scheme (personal.sron.nl/~pault): safe for the colour-blind, and four distinct greys in
# print.
COLOURS = ("#004488", "#DDAA33", "#BB5566", "#000000")
MARKERS = ("o", "s", "^", "D")
LINES = ("-", "--", "-.", ":")
WIDTH = 5.0  # inches: text of 10 points stays above 8 pixels on a phone that shows 380
LABELS = {
    "macs": "MACs",
    "flops": "FLOPs",
    "params": "parameters",
    "weight_bytes": "weights",
    "activation_bytes": "activations",
    "peak_activation_bytes": "peak memory",
}


def style() -> None:
    """Set the book's style for all figures made from now on, and vectors as the output format inside a notebook."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.edgecolor": "#444444",
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=COLOURS) + cycler(marker=MARKERS) + cycler(linestyle=LINES),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.figsize": (WIDTH, 3.4),
            "font.size": 10,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.8,
            "hatch.linewidth": 0.8,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "savefig.dpi": 200,
            "savefig.facecolor": "white",
            "svg.hashsalt": "cdlib",  # the same figure gives the same file
        }
    )
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


def bubbles(
    layers: pd.DataFrame, *, x: str = "flops", y: str = "activation_bytes", size: str = "params", ax: Axes | None = None
) -> Axes:
    """Draw a network's layers as bubbles: work against memory, the area of a bubble proportional to its parameters.

    Layers without work are left out. Layers at the same place lie on each other, darker, and share a label.

    Parameters
    ----------
    layers : pandas.DataFrame
        `Profile.layers`, or a part of it; its index gives the labels.
    x, y, size : str
        Columns.
    ax : Axes, optional
        Where to draw; default a new figure.

    Returns
    -------
    Axes
        With one collection, whose offsets are the layers' (x, y) in the table's order.

    Raises
    ------
    CdlibError
        If a column is unknown or no layer does any work.

    References
    ----------
    The figure is modelled on Figure 1 of Zawish, Davy and Abraham (2022), arXiv:2208.12816.
    """
    for column in (x, y, size):
        if column not in layers:
            raise unknown("column", column, layers.columns)
    working = layers[(layers[x] > 0) & (layers[y] > 0)]
    if working.empty:
        raise CdlibError(f"no layer has both {x} and {y}; there is nothing to draw.")
    axes = ax or _axes()
    area = (
        900 * working[size].to_numpy(float) / max(working[size].max(), 1) + 8
    )  # the 8 keeps the least of them visible
    axes.scatter(
        working[x].to_numpy(float),
        working[y].to_numpy(float),
        s=area,
        marker="o",
        color=COLOURS[0],
        alpha=0.55,
        edgecolor="black",
    )
    axes.set(xlabel=_label(x), ylabel=_label(y), title=f"area: {_label(size)}")
    axes.margins(0.12)
    for which, column in (("x", x), ("y", y)):
        _in_units(axes, which, "B" if column.endswith("_bytes") else "")
    label_points(axes, working[[x, y]], area)
    return axes


def timeline(profile: Profile, *, ax: Axes | None = None) -> Axes:
    """Draw the bytes of activations alive while each operator runs, the peak marked with its operator and layer.

    Parameters
    ----------
    profile : Profile
        Of the network.
    ax : Axes, optional
        Where to draw; default a new figure.

    Returns
    -------
    Axes
        With one step patch (the memory) and one annotation (the peak).

    Raises
    ------
    CdlibError
        If the network has no operators.
    """
    steps = profile.timeline
    if steps.empty:
        raise CdlibError(f"the profile of {profile.name} has no operators; there is nothing to draw.")
    axes = ax or _axes()
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
    axes.set(
        xlabel="operator, in the order of the run",
        ylabel="live activations",
        xlim=(0, len(live)),
        ylim=(0, 1.25 * live.max()),
    )
    _in_units(axes, "y", "B")
    return axes


def comparison(frame: pd.DataFrame, text: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw what is left of each quantity after compression: a bar per row, from 0 to the ratio after/before.

    A filled bar got smaller, a hatched one larger, and an empty one did not move by half a per cent.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns `before` and `after`, a row per quantity; `Comparison.frame`.
    text : pandas.DataFrame
        The same as text, in the same order, its index the labels; `Comparison.text()`.
    title : str, optional
        Of the figure.

    Returns
    -------
    Figure
        Its axes hold one bar per row, from the top down, whose width is the ratio; none where `before` is 0.
    """
    import matplotlib.pyplot as plt

    ratios = frame["after"].astype(float) / frame["before"].astype(float).replace(0, np.nan)
    figure, axes = plt.subplots(figsize=(WIDTH, 1.0 + 0.42 * len(frame)), layout="constrained")
    axes.axvline(1, color="#444444", linestyle="-", linewidth=1, marker="none")
    for row, ratio in enumerate(ratios):
        colour, hatch = (
            (COLOURS[0], None) if ratio < 0.995 else (COLOURS[2], "//") if ratio > 1.005 else ("white", None)
        )
        axes.barh(row, ratio, height=0.55, color=colour, hatch=hatch, edgecolor="black", linewidth=1)
        note = _change(ratio, str(text["change"].iloc[row]))
        axes.annotate(
            note,
            (ratio, row),
            xytext=(5, 0),
            textcoords="offset points",
            verticalalignment="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    labels = [f"{name}\n{line['before']} → {line['after']}" for name, line in text.iterrows()]
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="after / before", xlim=(0, 1.4 * ratios.max()), ylim=(len(labels) - 0.5, -0.5), title=title)
    axes.grid(axis="y", visible=False)
    return figure


def groups(groups: Groups, *, inside: str = "", most: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the operators of a network in the colours of their node groups.

    From top to bottom, each operator that computes something: stems (convolutions, linear layers) as boxes, accessories
    (norms, activations) round, joints (additions, concatenations) with points. The letters and colours of a node are
    those of the groups whose channels it hands on. A group that is not zero-invariant is hatched with a broken outline;
    one that cannot be pruned is grey and has no letter.

    Parameters
    ----------
    groups : Groups
        What `cdlib.find_groups` returns.
    inside : str, default ""
        Draw only this module, and where its inputs come from and its outputs go to.
    most : int, default 60
        How many nodes are allowed; more than these are hard to read.
    ax : Axes, optional
        Where to draw, with the legend to the right of it; default a new figure of the size that the text needs.

    Returns
    -------
    Axes
        In inches of the drawing, the top left near (0, 0).

    Raises
    ------
    CdlibError
        If there are no groups, no such module or too many nodes, or the module runs no operators.

    References
    ----------
    Stems, accessories, joints and node groups are terms of Chen et al. (2023), arXiv:2303.06862.
    """
    from cdlib.plots.group_drawing import draw

    return draw(groups, inside, most, ax)


def _change(ratio: float, change: str) -> str:
    """Return what stands beside a bar: percentage points as they are, "unchanged", else the ratio."""
    if change.endswith("points") or change == "unchanged":
        return change
    return "" if np.isnan(ratio) else f"× {ratio:.2f}" if ratio > 0.1 else f"× {ratio:.2g}"


def _axes() -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _label(column: str) -> str:
    return LABELS.get(column, column)


def _in_units(axes: Axes, which: str, unit: str) -> None:
    """Write the ticks of the x or y axis in decimal units: 10 k, 2 M, 300 kB."""
    from matplotlib.ticker import EngFormatter

    getattr(axes, f"{which}axis").set_major_formatter(EngFormatter(unit=unit))
