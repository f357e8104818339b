"""The ink of `cdlib.plots.groups`: nodes, letters, edges and the legend of a drawing of node groups.

A group is told by its letter first and by its colour second, so that the drawing reads in grey; lengths are inches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from cdlib.errors import CdlibError
from cdlib.grouping import Groups
from cdlib.plots.book_style import COLOURS, INK
from cdlib.plots.group_diagram import Diagram, Node, diagram
from cdlib.plots.layering import Layout, layered

HUES = (*COLOURS[:3], "#6699CC", "#997700", "#EE99AA")  # the book's, then the rest of Paul Tol's medium-contrast scheme
GREY = "#999999"
ROW = 0.42  # from layer to layer
HEIGHT = 0.27  # of a node
LINE = 0.15  # of the legend
SIDE = 5.0  # a drawing that is not wider with its legend has it beside, others below
BADGE, STEP = 0.095, 0.24  # radius of the disc with a group's letter; from one disc to the next
FONT = 8  # points
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}


def groups(groups: Groups, *, inside: str = "", most: int = 60, ax: Axes | None = None) -> Axes:
    """Draw the operators of a network in the colours of their node groups.

    From top to bottom, each operator that computes something: stems (convolutions, linear layers) as boxes, accessories
    (norms, activations) round, joints (additions, concatenations) with points. The letters and colours of a node are
    those of the groups whose channels it hands on. A group that is not zero-invariant is hatched with a broken outline;
    one that cannot be pruned is grey and has no letter.

    Parameters
    ----------
    groups : Groups
        Of the network.
    inside : str, default ""
        Draw only this module, and where its inputs come from and its outputs go to.
    most : int, default 60
        How many nodes are allowed; more than these are hard to read.
    ax : Axes, optional
        Where to draw, with the legend to the right of it; default a new figure of the size that the text needs. Its
        units become inches of the drawing, with the top left near (0, 0).

    Raises
    ------
    CdlibError
        If there are no groups, no such module or too many nodes, or the module runs no operators.

    References
    ----------
    Stems, accessories, joints and node groups are terms of Chen et al. (2023), arXiv:2303.06862.
    """
    found = diagram(groups, inside)
    if len(found.nodes) > most:
        raise CdlibError(
            f"there are {len(found.nodes)} operators to draw, more than most={most} that can be read: draw one module "
            f"of the network with inside='NAME', or raise most."
        )
    look = looks(groups, found)
    own = [[look[name] for name in node.groups] for node in found.nodes]
    letters = [[each for each in these if each.letter] for these in own]
    widths = [_width(node, len(these)) for node, these in zip(found.nodes, letters, strict=True)]
    layout = layered(widths, found.edges)
    left, wide, high = _extent(layout, widths)
    handles = _handles(groups, found, look)
    axes, place = (ax, BESIDE) if ax else _figure(wide, high, handles)
    axes.set(xlim=(left, left + wide), ylim=(HEIGHT - high, HEIGHT), aspect="equal")
    axes.axis("off")
    font = FONT * _scale(axes, wide, high)
    for route in layout.routes.values():
        _edge(axes, [(x, -ROW * y) for x, y in route])
    for k, node in enumerate(found.nodes):
        x, y = layout.places[k]
        _node(axes, node, own[k][0] if len(own[k]) == 1 else PLAIN, letters[k], (x, -ROW * y), widths[k], font)
    axes.legend(handles=handles, fontsize=FONT, handlelength=1.8, labelspacing=0.5, **place)
    return axes


@dataclass(frozen=True)
class Look:
    """How the nodes of a group look: its letter (none if it cannot be pruned), its colour, solid or hatched."""

    letter: str
    colour: str
    solid: bool

    @property
    def patch(self) -> dict[str, Any]:
        """Properties of a patch."""
        if self is PLAIN:
            return {"facecolor": "white", "edgecolor": INK}
        edge: dict[str, Any] = {"edgecolor": self.colour, "linewidth": 1.5}
        if self.solid:
            return {"facecolor": [0.7 + 0.3 * part for part in to_rgb(self.colour)], **edge}
        return {"facecolor": "white", "linestyle": (0, (2.5, 1.2)), "hatch": "////", **edge}


PLAIN = Look("", INK, True)  # of operators that hand on nothing that is in a group


def looks(groups: Groups, found: Diagram) -> dict[str, Look]:
    """Return a letter and a colour for each prunable group that is drawn, and grey without a letter for the others."""
    drawn = {name for node in found.nodes for name in node.groups}
    style = {group.name: Look("", GREY, True) for group in groups}
    for number, group in enumerate(group for group in groups.prunable if group.name in drawn):
        style[group.name] = Look(_letters(number), HUES[number % len(HUES)], group.zero_invariant)
    return style


def _letters(number: int) -> str:
    """A to Z, then AA, AB, ..."""
    return (_letters(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _text_width(text: str) -> float:
    return max(1.04 * float(TextPath((0, 0), line, size=FONT).get_extents().width) / 72 for line in text.split("\n"))


def _width(node: Node, letters: int) -> float:
    text = _text_width(node.text)
    if node.kind == "end":
        return text
    return text + (0.34 if node.kind == "joint" else 0.16) + letters * STEP


def _extent(layout: Layout, widths: list[float]) -> tuple[float, float, float]:
    """The left edge, width and height of a drawing with its margins."""
    half = [width / 2 for width in widths]
    stops = [x for route in layout.routes.values() for x, _ in route]
    left = min([x - half[k] for k, (x, _) in layout.places.items()] + stops) - 0.1
    right = max([x + half[k] for k, (x, _) in layout.places.items()] + stops) + 0.1
    return left, right - left, ROW * max(y for _, y in layout.places.values()) + 2 * HEIGHT


def _figure(wide: float, high: float, handles: list[Any]) -> tuple[Axes, dict[str, Any]]:
    """A figure in which the axes have as many inches as the drawing needs, with room for the legend, and its place."""
    words = max(_text_width(handle.get_label()) for handle in handles) + 0.65
    lines = LINE * sum(1.5 + handle.get_label().count("\n") for handle in handles)
    beside = wide + words <= SIDE
    width, height = (wide + words, max(high, lines)) if beside else (max(wide, words), high + lines)
    figure = plt.figure(figsize=(width, height))
    figure.set_layout_engine("none")
    first = 0.0 if beside else (1 - wide / width) / 2
    axes = figure.add_axes((first, 1 - high / height, wide / width, high / height))
    return axes, BESIDE if beside else BELOW


def _scale(axes: Axes, wide: float, high: float) -> float:
    """By how much the axes are smaller than a drawing should be (1: not at all)."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position(original=True).transformed(figure.transFigure - figure.dpi_scale_trans)
    return min(1.0, box.width / wide, box.height / high)


def _edge(axes: Axes, points: list[tuple[float, float]]) -> None:
    """A smooth line through the points that turns between the rows, where no box is; an arrow's head at the last."""
    half = HEIGHT / 2 + 0.01
    (x0, y0), (x1, y1) = points[0], points[-1]
    stops = [(x, y + side) for x, y in points[1:-1] for side in (half, -half)]
    points = [(x0, y0 - half), *stops, (x1, y1 + half)]
    corners, codes = [points[0]], [Path.MOVETO]
    for (xa, ya), (xb, yb) in pairwise(points):
        middle = (ya + yb) / 2
        corners += [(xa, middle), (xb, middle), (xb, yb)]
        codes += [Path.CURVE4] * 3
    arrow = FancyArrowPatch(path=Path(corners, codes), arrowstyle="-|>", mutation_scale=7, lw=0.9, color=INK, zorder=1)
    axes.add_patch(arrow)


def _node(
    axes: Axes, node: Node, look: Look, letters: list[Look], place: tuple[float, float], width: float, font: float
) -> None:
    x, y = place
    if node.kind == "end":
        axes.text(x, y, node.text, ha="center", va="center", fontsize=font, color=INK, style="italic")
        return
    if node.kind == "joint":
        half, high = width / 2, HEIGHT / 2 + 0.03
        top = max(half - 0.26, 0.0)  # a wide one has its tips cut off
        around = ((-half, 0.0), (-top, high), (top, high), (half, 0.0), (top, -high), (-top, -high))
        axes.add_patch(Polygon([(x + a, y + b) for a, b in around], closed=True, zorder=2, **look.patch))
    else:
        corner = "square,pad=0" if node.kind == "stem" else f"round,pad=0,rounding_size={HEIGHT / 2}"
        box = (x - width / 2, y - HEIGHT / 2), width, HEIGHT
        axes.add_patch(FancyBboxPatch(*box, boxstyle=corner, zorder=2, **look.patch))
    room = len(letters) * STEP
    ground = None if look.solid else {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    axes.text(x + room / 2, y, node.text, ha="center", va="center", fontsize=font, zorder=4, bbox=ground)
    middle: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": font - 1, "weight": "bold"}
    first = x - room / 2 - _text_width(node.text) / 2 + BADGE
    for k, each in enumerate(letters):
        centre = (first + k * STEP, y)
        red, green, blue = to_rgb(each.colour if each.solid else "white")
        axes.add_patch(Circle(centre, BADGE, zorder=5, facecolor=(red, green, blue), edgecolor=each.colour, lw=1.2))
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.4
        axes.text(*centre, each.letter, color="white" if dark else "black", zorder=6, **middle)


def _handles(groups: Groups, found: Diagram, looks: dict[str, Look]) -> list[Any]:
    """What stands in the legend: a line per group that is drawn, then one per kind of node."""
    handles: list[Any] = []
    for group in groups:
        look = looks[group.name]
        if look.letter:
            label = f"{look.letter}  {group.name}\n{group.size} units" + ("" if look.solid else ", not zero-invariant")
            handles.append(Patch(label=label, **look.patch))
    if any(not looks[name].letter for node in found.nodes for name in node.groups):
        handles.append(Patch(label="not prunable", **Look("", GREY, True).patch))
    kinds = {node.kind for node in found.nodes}
    white: dict[str, Any] = {"color": "none", "markerfacecolor": "white", "markeredgecolor": INK}
    for kind, marker in (("stem", "s"), ("accessory", "o"), ("joint", "D")):
        if kind in kinds:
            handles.append(Line2D([], [], marker=marker, label=kind, **white))
    return handles
