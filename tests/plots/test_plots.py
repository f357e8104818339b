"""The shared figures show the numbers they were given; how they look is for the eye."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.patches import StepPatch
from torch import nn

from cdlib import plots
from cdlib.complexity import Profile, profile
from cdlib.errors import CdlibError
from cdlib.grouping import Groups, find_groups
from cdlib.plots.group_diagram import diagram
from cdlib.plots.layering import GAP, LANE, layered

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


@pytest.fixture(autouse=True)
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def show(*_: object, **__: object) -> None:
        raise AssertionError("only a notebook shows a figure")

    monkeypatch.setattr(plt, "show", show)
    with matplotlib.rc_context():
        plots.style()
        yield
    plt.close("all")


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
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 12
    assert not any(a.shrunk(0.98, 0.9).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


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
    figure = plots.comparison(frame, text, title="dense → pruned")
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches[:4]] == pytest.approx([0.88 / 0.9, 0.25, 1.0, 1.25])
    assert np.isnan(axes.patches[4].get_width())
    assert [bar.get_hatch() for bar in axes.patches[:4]] == [None, None, None, "//"]
    assert [note.get_text() for note in axes.texts] == ["-2.00 points", "× 0.25", "unchanged", "× 1.25", ""]
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "file\n100 B → 25 B"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top
    assert axes.get_title(loc="left") == "dense → pruned"


def test_a_comparison_of_networks_is_drawn() -> None:
    from cdlib import report

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    measured = report.measure({"a": model, "b": model}, None, example_input=torch.zeros(1, 1, 8, 8), runs=1)
    comparison = report.compare(measured["a"], measured["b"])
    figure = plots.comparison(comparison.frame, comparison.text())
    assert len(figure.axes[0].patches) == len(comparison.frame)


def test_the_colours_are_told_apart_in_grey() -> None:
    greys = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, plots.COLOURS))
    assert min(np.diff(greys)) > 0.12
    assert len({*plots.MARKERS}) == len({*plots.LINES}) == len(plots.COLOURS)


def test_a_figure_drawn_into_given_axes_makes_no_other(network: Profile) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert plots.bubbles(LAYERS, ax=left) is left
    assert plots.timeline(network, ax=right) is right
    assert plt.get_fignums() == [figure.number]


class Branches(nn.Module):
    """A stem, a residual branch with a depthwise convolution, a concatenation, a gate, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.side = nn.Conv2d(4, 6, 1)
        self.drop = nn.Dropout()
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.branch(x)
        x = torch.cat([x, torch.sigmoid(self.side(x))], 1)
        return self.head(self.drop(x).mean((2, 3)))


@pytest.fixture(scope="module")
def branches() -> Groups:
    return find_groups(Branches(), torch.zeros(1, 3, 8, 8))


def test_a_diagram_has_the_operators_with_their_kinds_groups_and_readers(branches: Groups) -> None:
    found = diagram(branches)
    assert [(node.text, node.kind, node.groups) for node in found.nodes] == [
        ("input", "end", ()),
        ("conv 3×3 · stem", "stem", ("stem",)),
        ("conv 3×3 dw · branch.0", "stem", ("stem",)),
        ("batch norm · branch.1", "accessory", ("stem",)),
        ("relu · branch.2", "accessory", ("stem",)),
        ("+", "joint", ("stem",)),
        ("conv 1×1 · side", "stem", ("side",)),
        ("sigmoid", "accessory", ("side",)),
        ("concat", "joint", ("stem", "side")),
        ("mean", "accessory", ("stem", "side")),
        ("linear · head", "stem", ("head",)),
        ("output", "end", ()),
    ]
    assert set(found.edges) == {
        *((k, k + 1) for k in range(11)),
        (1, 5),  # past the branch, to the addition
        (5, 8),  # past the side, to the concatenation
    }


def test_a_diagram_of_a_module_says_where_its_tensors_come_from_and_go_to(branches: Groups) -> None:
    found = diagram(branches, "branch")
    texts = [node.text for node in found.nodes]
    assert texts == ["from stem", "conv 3×3 dw · 0", "batch norm · 1", "relu · 2", "to add"]
    assert found.edges == [(0, 1), (1, 2), (2, 3), (3, 4)]
    last = diagram(branches, "head")
    assert [node.text for node in last.nodes] == ["from mean", "linear", "output"]


def test_groups_are_told_by_letter_and_hatch_and_the_legend_names_them(branches: Groups) -> None:
    axes = plots.groups(branches)
    letters = [text.get_text() for text in axes.texts if text.get_text() in ("A", "B")]
    assert letters == ["A"] * 5 + ["B"] * 2 + ["A", "B"] * 2
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "A  stem\n4 units",
        "B  side\n6 units, not zero-invariant",
        "not prunable",
        "stem",
        "accessory",
        "joint",
    ]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == 2  # side and its sigmoid
    assert {patch.get_linestyle() for patch in hatched} != {patch.get_linestyle() for patch in axes.patches}


def test_texts_of_a_drawing_of_groups_stay_inside_and_apart(branches: Groups) -> None:
    figure = plots.groups(branches).get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.shrunk(0.9, 0.9).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    whole = figure.get_window_extent()
    legend = axes.get_legend()
    assert legend is not None
    for box in (*boxes, legend.get_window_extent()):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


def test_groups_draw_into_given_axes(branches: Groups) -> None:
    figure, axes = plt.subplots(figsize=(3, 3))
    assert plots.groups(branches, ax=axes) is axes
    assert plt.get_fignums() == [figure.number]
    names = [text for text in axes.texts if "conv" in text.get_text()]
    assert all(text.get_fontsize() < 8 for text in names)  # smaller axes, smaller text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inside": "brnch"}, "unknown module 'brnch'; did you mean 'branch'"),
        ({"inside": "drop"}, "module 'drop' runs no operators"),
        ({"most": 5}, "12 operators to draw, more than most=5"),
    ],
)
def test_groups_that_cannot_be_drawn_are_an_error(branches: Groups, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        plots.groups(branches, **options)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(CdlibError, match="0 groups of ReLU.*nothing to draw"):
        plots.groups(find_groups(nn.ReLU(), torch.zeros(1, 3)))
    with pytest.raises(CdlibError, match="groups is 'ReLU': give what cdlib.find_groups returns"):
        plots.groups(nn.ReLU())  # type: ignore[arg-type]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_in_layers_edges_point_down_and_nothing_overlaps(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = data.draw(st.lists(st.sampled_from(pairs), max_size=18)) if pairs else []
    widths = data.draw(st.lists(st.floats(0.2, 3), min_size=count, max_size=count))
    layout = layered(widths, edges)
    assert set(layout.routes) == set(edges)
    for (a, b), route in layout.routes.items():
        assert (route[0], route[-1]) == (layout.places[a], layout.places[b])
        assert [y for _, y in route] == [route[0][1] + k for k in range(len(route))]  # a stop in every layer between
    boxes = [(x, y, w) for (x, y), w in zip(layout.places.values(), widths, strict=True)]
    boxes += [(x, y, LANE) for route in layout.routes.values() for x, y in route[1:-1]]
    for k, (x, y, w) in enumerate(boxes):
        for other, level, width in boxes[:k]:
            assert y != level or abs(x - other) >= (w + width) / 2 + GAP - 1e-6


def test_a_chain_stands_straight_beside_its_shortcut() -> None:
    layout = layered([1.0, 2.0, 0.5, 1.5, 1.0], [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)])
    assert len({round(x, 6) for x, _ in layout.places.values()}) == 1
    assert len({round(x, 6) for x, _ in layout.routes[0, 4][1:-1]}) == 1


def test_columns_of_a_dense_graph_do_not_cross() -> None:
    edges = [(a, b) for b in range(9) for a in range(b) if (a * b + a + b) % 3]
    layout = layered([1.0] * 9, edges)
    assert set(layout.routes) == set(edges)


def test_views_and_copies_are_not_drawn_but_passed_on() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Linear(4, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).permute(0, 2, 3, 1).clone()
            x[..., :2].mul_(2)  # writes through a view
            return self.b(x)

    found = diagram(find_groups(Views(), torch.zeros(1, 3, 4, 4)))
    assert [node.text for node in found.nodes] == ["input", "conv 1×1 · a", "×", "linear · b", "output"]
    assert found.edges == [(0, 1), (1, 2), (2, 3), (3, 4)]
