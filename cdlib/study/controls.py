"""Against the control that everyone has: a network of uniform width, of whatever size.

A method that chooses widths can be compared with a uniform width of the same cost only where such a run was made.
Several of them make a line from the narrowest to the dense network, and the line has a point at nearly every cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import nn

from cdlib.errors import CdlibError
from cdlib.grouping import Groups
from cdlib.pruning import Meter


def above(cases: pd.DataFrame, line: pd.DataFrame, cost: str) -> pd.Series:
    """Return by how many percentage points of accuracy runs lie above the line of other runs, at the same cost.

    That is a number per case: negative below the line, NaN where the cost is outside of its range.

    Parameters
    ----------
    cases : DataFrame
        A row per run, with the columns `accuracy` (a share from 0 to 1) and `cost`.
    line : DataFrame
        The runs that make the line, with the same columns, in any order; those of equal cost count with their mean.
        Between neighbours accuracy is taken to be linear in the logarithm of the cost.
    cost : str
        A column of positive numbers: "params" or "macs", for example.

    Raises
    ------
    CdlibError
        If a column is missing, a cost is not positive, or the line has fewer than two different costs.
    """
    for what, frame in (("cases", cases), ("line", line)):
        if missing := [column for column in ("accuracy", cost) if column not in frame]:
            raise CdlibError(f"{what} has no column {missing[0]!r}: give runs with 'accuracy' and {cost!r}.")
        if not (costs := frame[cost].astype(float)).gt(0).all():
            raise CdlibError(f"{what} has {cost}={costs[~costs.gt(0)].iloc[0]:g}: a cost must be positive.")
    points = line["accuracy"].astype(float).groupby(line[cost].astype(float)).mean()
    if len(points) < 2:
        raise CdlibError(f"the line has {len(points)} different {cost}: a line takes two at least.")
    at = cases[cost].astype(float)
    there = np.interp(np.log(at), np.log(points.index), points)
    return (100 * (cases["accuracy"].astype(float) - there)).where(at.between(points.index[0], points.index[-1]))


def uniform_line(runs: pd.DataFrame) -> pd.DataFrame:
    """Return those of the recorded runs of a network that make its line: uniform widths, and the dense network.

    `runs` are of one network, as `cdlib.study.recorded` returns them; the line are those that were trained once and for
    the epochs of the recipe, with no floor under the widths.
    """
    plain = runs["method.name"].isin(["dense", "uniform_width"])
    for option in ("fine_tune.epochs", "budget", "min_width"):
        plain &= runs[f"method.{option}"].isna()
    return runs[plain]


def recounted(model: nn.Module, groups: Groups, widths: Mapping[str, float]) -> dict[str, int]:
    """Return what a network costs whose groups were cut to some widths: a record keeps the widths, not every count.

    That is ``params``, ``macs`` and ``activation_bytes``, as `cdlib.profile` counts them. `model` is the dense network,
    `groups` what `cdlib.find_groups` returned for it, and `widths` says how many units of each group are left, as a
    record does. Other names are passed over, since in a network that was cut to one channel a depthwise convolution
    becomes a group of its own.

    Raises
    ------
    CdlibError
        If a width is missing, or is none that a cut can leave.
    """
    meter = Meter(model, groups)
    for name, size in list(meter.kept.items()):
        width = widths.get(name, math.nan)
        if not (1 <= width <= size and width == int(width)):
            raise CdlibError(f"group {name!r} of {size} units has no width in this record, or {width!r}.")
        meter.drop(name, range(int(width), size))
    return dict(meter.totals)
