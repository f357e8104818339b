"""Runs side by side: a column of marks for each method, and its mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from cdlib.errors import CdlibError
from cdlib.plots.book_style import COLOURS, MARKERS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def strips(runs: Mapping[str, Iterable[float]], *, ax: Axes | None = None) -> Axes:
    """Draw a column of marks for each method, one for each of its runs, and a bar at their mean.

    Parameters
    ----------
    runs : mapping of str to iterable of float
        The values of each method, in any order; those of a column stand beside one another.
    ax : Axes, optional
        Where to draw; default a new figure.

    Returns
    -------
    Axes
        With a line and a collection per method, in this order, at x = 0, 1, 2 and so on.

    Raises
    ------
    CdlibError
        If there is no method, or one without runs.
    """
    columns = {name: np.asarray(list(values), dtype=float) for name, values in runs.items()}
    for name, values in columns.items() or {"": np.empty(0)}.items():
        if not len(values):
            raise CdlibError(f"no runs of {name!r} to draw: give at least one of each.")
    axes = ax or new_axes()
    for place, values in enumerate(columns.values()):
        beside = place + 0.36 * ((np.arange(len(values)) + 0.5) / len(values) - 0.5)
        mark = MARKERS[place % len(MARKERS)]
        axes.plot(beside, values, mark, color=COLOURS[0], linestyle="none", markersize=4.5)
        axes.hlines(values.mean(), place - 0.33, place + 0.33, color="black", linewidth=2)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.grid(axis="x", visible=False)
    return axes
