"""The line of uniform widths, against values computed by hand."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from cdlib import CdlibError
from cdlib.study.controls import above


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
