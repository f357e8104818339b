"""The line of uniform widths, against values computed by hand; counts from widths, against those of real networks."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch

import cdlib
from cdlib import CdlibError, models
from cdlib.study.controls import above, recounted


def runs(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns)


LINE = runs(macs=[1000, 10, 10], accuracy=[0.7, 0.6, 0.4])  # two runs of one cost, mean 0.5; not in order


def test_points_above_the_line_at_the_same_cost() -> None:
    cases = runs(macs=[100, 10, 1000, 31.622776601683793], accuracy=[0.65, 0.5, 0.66, 0.5])
    cases.index = pd.Index([7, 3, 5, 1])
    found = above(cases, LINE, "macs")
    # In the middle of the logarithms the line is at 0.6, at a quarter at 0.55.
    assert found.round(9).to_dict() == {7: 5.0, 3: 0.0, 5: -4.0, 1: -5.0}


def test_nothing_is_said_outside_of_the_line() -> None:
    found = above(runs(macs=[9.9, 1000.1, 10, 1000], accuracy=[0.5, 0.9, 0.5, 0.7]), LINE, "macs")
    assert found.isna().tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("cases", "line", "message"),
    [
        (runs(macs=[1]), LINE, "cases has no column 'accuracy'"),
        (LINE, runs(accuracy=[0.5, 0.6]), "line has no column 'macs'"),
        (LINE, LINE[1:], "the line has 1 different macs"),
        (LINE, LINE[:0], "the line has 0 different macs"),
        (runs(macs=[0], accuracy=[0.5]), LINE, "cases has macs=0: a cost must be positive"),
        (LINE, runs(macs=[10, float("nan")], accuracy=[0.5, 0.6]), "line has macs=nan"),
    ],
)
def test_what_makes_no_line(cases: pd.DataFrame, line: pd.DataFrame, message: str) -> None:
    with pytest.raises(CdlibError, match=re.escape(message)):
        above(cases, line, "macs")


@pytest.mark.parametrize("name", ["vgg_mini", "resnet_mini", "convnext_mini"])
def test_counts_from_widths_are_those_of_the_network(name: str) -> None:
    model, x = models.build(name, 10), torch.zeros(1, 3, 32, 32)
    small = cdlib.pruning.complexity_driven(model, cdlib.find_groups(model, x), "FA", 0.7, step=4)
    widths = {group.name: group.size for group in cdlib.find_groups(small, x).prunable}
    counted = cdlib.profile(small, x)
    found = recounted(model, cdlib.find_groups(model, x), {**widths, "of another network": 3})
    assert found == {key: getattr(counted, key) for key in ("params", "macs", "activation_bytes")}


@pytest.mark.parametrize("width", [None, 0, 2.5, 1000, float("nan")])
def test_widths_that_no_cut_can_leave(width: float | None) -> None:
    model, x = models.build("vgg_mini", 10), torch.zeros(1, 3, 32, 32)
    groups = cdlib.find_groups(model, x)
    widths = {group.name: group.size for group in groups.prunable}
    name = groups.prunable[2].name
    del widths[name]
    with pytest.raises(CdlibError, match=re.escape(f"group {name!r} of ")):
        recounted(model, groups, widths if width is None else {**widths, name: width})
