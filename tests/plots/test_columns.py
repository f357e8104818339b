"""Columns of runs: where marks and means stand."""

from __future__ import annotations

import numpy as np
import pytest

from cdlib import CdlibError, plots


def test_every_run_has_a_mark_and_every_method_its_mean() -> None:
    axes = plots.strips({"one": [3.0, 1.0], "two": iter([5.0])})
    places = [np.asarray(line.get_xdata()) for line in axes.get_lines()]
    values = [list(np.asarray(line.get_ydata())) for line in axes.get_lines()]
    assert values == [[3.0, 1.0], [5.0]]
    assert places[0].tolist() == pytest.approx([-0.09, 0.09]) and places[1].tolist() == [1.0]
    bars = [collection.get_paths()[0].vertices for collection in axes.collections]
    assert [np.asarray(bar)[:, 1].tolist() for bar in bars] == [[2.0, 2.0], [5.0, 5.0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two"]
    assert len({line.get_marker() for line in axes.get_lines()}) == 2


@pytest.mark.parametrize("runs", [{}, {"one": [1.0], "two": []}])
def test_a_column_without_runs_is_an_error(runs: dict[str, list[float]]) -> None:
    with pytest.raises(CdlibError, match="give at least one of each"):
        plots.strips(runs)
