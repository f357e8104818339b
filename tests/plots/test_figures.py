"""The shared figures show the numbers they were given; how they look is for the eye."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from torch import nn

from cdlib import plots, report
from cdlib.complexity import Profile, profile
from cdlib.errors import CdlibError

LAYERS = pd.DataFrame(
    {
        "kind": ["Conv2d", "ReLU", "Conv2d", "Conv2d", "Linear"],
        "flops": [3_500, 0, 75_000, 75_000, 500],
        "macs": [1_750, 0, 37_500, 37_500, 250],
        "activation_bytes": [260_000, 260_000, 33_000, 33_000, 40],
        "params": [2_000, 0, 2_000_000, 1_000_000, 5_000],
    },
    index=pd.Index(["features.0", "features.1", "features.2", "features.4", "fc"], name="layer"),
)


@pytest.fixture(scope="module")
def network() -> Profile:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    return profile(model, torch.zeros(1, 1, 8, 8))


def test_bubbles_stand_where_the_layers_are() -> None:
    axes = plots.bubbles(LAYERS)
    (points,) = axes.collections
    expected = [(3_500, 260_000), (75_000, 33_000), (75_000, 33_000), (500, 40)]  # the ReLU does no work
    assert np.asarray(points.get_offsets()).tolist() == [list(map(float, p)) for p in expected]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == (
        "FLOPs",
        "activations",
        "area: parameters",
    )
    by_macs = plots.bubbles(LAYERS, x="macs", y="params", size="flops")
    assert np.asarray(by_macs.collections[0].get_offsets())[1].tolist() == [37_500, 2_000_000]


def test_the_area_of_a_bubble_grows_with_its_layer() -> None:
    areas = plots.bubbles(LAYERS).collections[0].get_sizes()
    smallest = 8  # points kept visible, whatever they hold
    assert (areas - smallest) / (areas - smallest).max() == pytest.approx(np.array([1e-3, 1, 0.5, 2.5e-3]))


def test_layers_at_one_place_share_a_label() -> None:
    assert [text.get_text() for text in plots.bubbles(LAYERS).texts] == ["features.0", "features.2, 4", "fc"]
    renamed = LAYERS.set_axis(["a", "b", "c", "d", "e"])
    assert [text.get_text() for text in plots.bubbles(renamed).texts] == ["a", "c and 1 more", "e"]


def test_labels_cover_neither_each_other_nor_the_edge() -> None:
    rng = np.random.default_rng(0)
    layers = pd.DataFrame(
        {name: rng.integers(1, 100_000, 12) for name in ("flops", "activation_bytes", "params")},
        index=[f"layer{i}.conv1" for i in range(12)],
    )
    axes = plots.bubbles(layers)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    # A leader line belongs to the extent of an annotation, so the text's own box is asked for.
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 12
    assert not any(a.shrunk(0.98, 0.9).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (LAYERS, {"x": "flop"}, "unknown column 'flop'; did you mean 'flops'"),
        (LAYERS.iloc[1:2], {}, "no layer has both flops and activation_bytes"),
    ],
)
def test_bubbles_of_nothing_are_an_error(layers: pd.DataFrame, options: dict[str, str], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        plots.bubbles(layers, **options)  # type: ignore[arg-type]


def test_the_timeline_shows_memory_and_marks_the_peak(network: Profile) -> None:
    axes = plots.timeline(network)
    live = network.timeline["live_bytes"].tolist()
    steps = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    assert all(patch.get_data().values.tolist() == live for patch in steps)
    assert steps
    (mark,) = axes.lines
    assert mark.get_xydata().tolist() == [[live.index(2048) + 0.5, 2048.0]]
    (note,) = axes.texts
    assert note.get_text() == "peak 2.048 kB\nrelu in 1"


def test_a_comparison_shows_what_is_left() -> None:
    frame = pd.DataFrame(
        {"before": [0.9, 100, 10, 4.0, 0], "after": [0.88, 25, 10, 5.0, 3]},
        index=["accuracy", "file_bytes", "params", "latency_p50_ms", "peak_memory_bytes"],
    )
    changes = ["-2.00 points", "-75 B (-75.0 %)", "unchanged", "+1 ms (+25.0 %)", "+3 B (+nan %)"]
    text = pd.DataFrame(
        {
            "before": ["90.00 %", "100 B", "10", "4 ms", "0 B"],
            "after": ["88.00 %", "25 B", "10", "5 ms", "3 B"],
            "change": changes,
        },
        index=["accuracy", "file", "parameters", "latency p50", "peak memory"],
    )
    names = {"before": SimpleNamespace(name="dense"), "after": SimpleNamespace(name="pruned")}
    compared = SimpleNamespace(frame=frame, text=lambda: text, **names)
    (axes,) = plots.comparison(compared).axes  # type: ignore[arg-type]
    assert [bar.get_width() for bar in axes.patches[:4]] == pytest.approx([0.88 / 0.9, 0.25, 1.0, 1.25])
    assert np.isnan(axes.patches[4].get_width())
    assert [bar.get_hatch() for bar in axes.patches[:4]] == [None, None, None, "//"]
    assert [note.get_text() for note in axes.texts] == ["-2.00 points", "× 0.25", "unchanged", "× 1.25", ""]
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "file\n100 B → 25 B"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert axes.get_title(loc="left") == "dense → pruned"


def test_a_comparison_of_networks_can_be_drawn() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    measured = report.measure({"a": model, "b": model}, None, example_input=torch.zeros(1, 1, 8, 8), runs=1)
    comparison = report.compare(measured["a"], measured["b"])
    axes = plots.comparison(comparison).axes[0]
    assert len(axes.patches) == len(comparison.frame)
    assert axes.get_title(loc="left") == "a → b"


def test_the_colours_are_told_apart_in_grey() -> None:
    greys = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, plots.COLOURS))
    assert min(np.diff(greys)) > 0.12
    assert len({*plots.MARKERS}) == len({*plots.LINES}) == len(plots.COLOURS)


def test_a_figure_drawn_into_given_axes_makes_no_other(network: Profile) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert plots.bubbles(LAYERS, ax=left) is left
    assert plots.timeline(network, ax=right) is right
    assert plt.get_fignums() == [figure.number]


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
