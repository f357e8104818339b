"""Drawings of node groups: every operator with its kind, its groups and its readers, legible and clear of the edges."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon
from torch import nn

from cdlib import plots
from cdlib.errors import CdlibError
from cdlib.grouping import Groups, find_groups
from cdlib.plots.group_diagram import diagram


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
    others = {patch.get_linestyle() for patch in axes.patches if not patch.get_hatch()}
    assert others == {"solid"} and not others & {patch.get_linestyle() for patch in hatched}


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


def test_edges_do_not_run_through_nodes(branches: Groups) -> None:
    axes = plots.groups(branches)
    nodes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch | Polygon)]
    boxes = [patch.get_extents() for patch in nodes]
    edges = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert (len(boxes), len(edges)) == (10, 13)
    for edge in edges:
        line = edge.get_path().transformed(edge.get_transform()).to_polygons(closed_only=False)[0]
        points = np.concatenate([np.linspace(a, b, 50) for a, b in pairwise(line)])
        for box in boxes:
            x, y = ((points - box.min) / box.size).T  # an arrow's head may touch the node that it points at
            assert not ((x > 0) & (x < 1) & (y > 0.1) & (y < 0.9)).any()


def test_groups_draw_into_given_axes(branches: Groups) -> None:
    figure, axes = plt.subplots(figsize=(3, 3))
    assert plots.groups(branches, ax=axes) is axes
    assert plt.get_fignums() == [figure.number]
    names = [text for text in axes.texts if "conv" in text.get_text()]
    assert len(names) == 3
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


SCRIPT = """
import io, sys, torch
from torch import nn
import cdlib
from cdlib import plots

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 5, 1)
    def forward(self, x):
        x = self.a(x)
        return torch.cat([x, self.b(x), torch.relu(self.c(x))], 1)

def drawn():
    plots.style()
    x, file = torch.zeros(1, 3, 4, 4), io.BytesIO()
    for axes in (plots.groups(cdlib.find_groups(Net(), x)), plots.bubbles(cdlib.profile(Net(), x).layers)):
        axes.get_figure().savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
"""


def test_a_drawing_has_the_same_bytes_in_every_process() -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    assert (here := names["drawn"]()).count(b"</svg>") == 2
    command = [sys.executable, "-c", f"{SCRIPT}\nsys.stdout.buffer.write(drawn())"]
    environment = os.environ | {"PYTHONHASHSEED": "1", "MPLBACKEND": "agg"}
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == here
