"""The ink of `cdlib.plots.groups`: nodes, letters, edges and the legend of a drawing of node groups.

A group is told by its letter first and by its colour second, so that the drawing reads in grey; lengths are inches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cdlib.errors import CdlibError
from cdlib.grouping import Groups
from cdlib.plots.group_diagram import Diagram, Node, diagram
from cdlib.plots.layering import Layout, layered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's high-contrast scheme, then the rest of his medium-contrast one (personal.sron.nl/~pault).
COLOURS = ("#004488", "#DDAA33", "#BB5566", "#6699CC", "#997700", "#EE99AA")
GREY = "#999999"
ROW = 0.42  # from layer to layer
HEIGHT = 0.27  # of a node
LINE = 0.15  # of the legend
SIDE = 5.0  # a drawing that is not wider with its legend has it beside, others below
BADGE = 0.095  # radius of the disc with a group's letter
FONT = 8  # points
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}


@dataclass(frozen=True)
class Look:
    """How the nodes of a group look: its letter (none if it cannot be pruned), its colour, solid or hatched."""

    letter: str
    colour: str
    solid: bool

    @property
    def patch(self) -> dict[str, Any]:
        """Properties of a patch."""
        red, green, blue = (int(self.colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
        pale = (0.7 + 0.3 * red, 0.7 + 0.3 * green, 0.7 + 0.3 * blue)
        if self.solid:
            return {"facecolor": pale, "edgecolor": self.colour, "linewidth": 1.5}
        return {
            "facecolor": "white",
            "edgecolor": self.colour,
            "linewidth": 1.5,
            "linestyle": (0, (2.5, 1.2)),
            "hatch": "////",
        }


PLAIN = Look("", "#444444", True)
"""Of operators that hand on nothing that is in a group."""


def looks(groups: Groups, found: Diagram) -> dict[str, Look]:
    """Return a letter and a colour for each prunable group that is drawn, and grey without a letter for the others."""
    drawn = {name for node in found.nodes for name in node.groups}
    style = {group.name: Look("", GREY, True) for group in groups}
    for number, group in enumerate(group for group in groups.prunable if group.name in drawn):
        style[group.name] = Look(_letters(number), COLOURS[number % len(COLOURS)], group.zero_invariant)
    return style


def _letters(number: int) -> str:
    """A to Z, then AA, AB, ..."""
    text, number = "", number + 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def draw(groups: Groups, inside: str, most: int, axes: Axes | None) -> Axes:
    """Draw groups; see `cdlib.plots.groups`."""
    found = diagram(groups, inside)
    if len(found.nodes) > most:
        raise CdlibError(
            f"there are {len(found.nodes)} operators to draw, more than most={most} that can be read: draw one module "
            f"of the network with inside='NAME', or raise most."
        )
    style = looks(groups, found)
    letters = [[style[name] for name in node.groups if style[name].letter] for node in found.nodes]
    widths = [_width(node, len(own)) for node, own in zip(found.nodes, letters, strict=True)]
    layout = layered(widths, found.edges)
    handles = _handles(groups, found, style)
    place = BESIDE
    if axes is None:
        axes, place = _figure(layout, widths, handles)
    font = FONT * _frame(axes, layout, widths)
    for route in layout.routes.values():
        _edge(axes, [(x, -ROW * y) for x, y in route])
    for number, node in enumerate(found.nodes):
        x, y = layout.places[number]
        own = [style[name] for name in node.groups]
        _node(axes, node, own[0] if len(own) == 1 else PLAIN, letters[number], (x, -ROW * y), widths[number], font)
    axes.legend(handles=handles, fontsize=FONT, handlelength=1.8, labelspacing=0.5, **place)
    return axes


def _text_width(text: str) -> float:
    from matplotlib.textpath import TextPath

    return max(1.04 * float(TextPath((0, 0), line, size=FONT).get_extents().width) / 72 for line in text.split("\n"))


def _width(node: Node, letters: int) -> float:
    text = _text_width(node.text)
    if node.kind == "end":
        return text
    return text + (0.34 if node.kind == "joint" else 0.16) + letters * (2 * BADGE + 0.05)


def _figure(layout: Layout, widths: list[float], handles: list[Any]) -> tuple[Axes, dict[str, Any]]:
    """A figure in which the axes have as many inches as the drawing needs, with room for the legend, and its place."""
    import matplotlib.pyplot as plt

    left, right, rows = _extent(layout, widths)
    words = max(_text_width(handle.get_label()) for handle in handles) + 0.65
    lines = sum(1.5 + handle.get_label().count("\n") for handle in handles)
    wide, high = right - left + 0.2, ROW * rows + 2 * HEIGHT
    beside = wide + words <= SIDE
    width = wide + words if beside else max(wide, words)
    height = max(high, LINE * lines) if beside else high + LINE * lines
    figure = plt.figure(figsize=(width, height))
    figure.set_layout_engine("none")
    first = 0.0 if beside else (1 - wide / width) / 2
    axes = figure.add_axes((first, 1 - high / height, wide / width, high / height))
    return axes, BESIDE if beside else BELOW


def _extent(layout: Layout, widths: list[float]) -> tuple[float, float, float]:
    """Left, right and the last row."""
    centres = layout.places
    stops = [x for route in layout.routes.values() for x, _ in route]
    left = min([centres[k][0] - w / 2 for k, w in enumerate(widths)] + stops)
    right = max([centres[k][0] + w / 2 for k, w in enumerate(widths)] + stops)
    return left, right, max(y for _, y in centres.values())


def _frame(axes: Axes, layout: Layout, widths: list[float]) -> float:
    """Make the axes show the drawing, and return by how much it is smaller than it should be (1: not at all)."""
    left, right, rows = _extent(layout, widths)
    wide, high = right - left + 0.2, ROW * rows + 2 * HEIGHT
    axes.set(xlim=(left - 0.1, right + 0.1), ylim=(-ROW * rows - HEIGHT, HEIGHT), aspect="equal")
    axes.axis("off")
    dpi = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    box = axes.get_position(original=True).transformed(axes.get_figure(root=True).transFigure)  # type: ignore[union-attr]
    return min(1.0, box.width / dpi / wide, box.height / dpi / high)


def _edge(axes: Axes, points: list[tuple[float, float]]) -> None:
    """A smooth line through the points, vertical at each, with an arrow's head at the last."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    half = HEIGHT / 2 + 0.01
    (x0, y0), (x1, y1) = points[0], points[-1]
    points = [(x0, y0 - half), *points[1:-1], (x1, y1 + half)]
    corners, codes = [points[0]], [Path.MOVETO]
    for (xa, ya), (xb, yb) in pairwise(points):
        middle = (ya + yb) / 2
        corners += [(xa, middle), (xb, middle), (xb, yb)]
        codes += [Path.CURVE4] * 3
    axes.add_patch(
        FancyArrowPatch(
            path=Path(corners, codes), arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color="#444444", zorder=1
        )
    )


def _node(
    axes: Axes, node: Node, look: Look, letters: list[Look], place: tuple[float, float], width: float, font: float
) -> None:
    from matplotlib.patches import Circle, FancyBboxPatch, Polygon

    x, y = place
    if node.kind == "end":
        axes.text(x, y, node.text, ha="center", va="center", fontsize=font, color="#444444", style="italic")
        return
    room = len(letters) * (2 * BADGE + 0.05)
    style = (
        {**look.patch, "zorder": 2}
        if look is not PLAIN
        else {"facecolor": "white", "edgecolor": "#444444", "zorder": 2}
    )
    if node.kind == "joint":
        half, high = width / 2, HEIGHT / 2 + 0.03
        top = max(half - 0.26, 0.0)  # a wide one has its tips cut off
        corners = [
            (x - half, y),
            (x - top, y + high),
            (x + top, y + high),
            (x + half, y),
            (x + top, y - high),
            (x - top, y - high),
        ]
        axes.add_patch(Polygon(corners, closed=True, **style))
    else:
        corner = "square,pad=0" if node.kind == "stem" else f"round,pad=0,rounding_size={HEIGHT / 2}"
        box = (x - width / 2, y - HEIGHT / 2), width, HEIGHT
        axes.add_patch(FancyBboxPatch(*box, boxstyle=corner, **style))
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if look.patch.get("hatch") else None
    axes.text(x + room / 2, y, node.text, ha="center", va="center", fontsize=font, zorder=4, bbox=ground)
    first = x - room / 2 - _text_width(node.text) / 2 + BADGE
    for k, each in enumerate(letters):
        centre = (first + k * (2 * BADGE + 0.05), y)
        axes.add_patch(Circle(centre, BADGE, zorder=5, **_badge(each)))
        dark = each.solid and _luminance(each.colour) < 0.4
        axes.text(
            *centre,
            each.letter,
            ha="center",
            va="center_baseline",
            fontsize=font - 1,
            weight="bold",
            zorder=6,
            color="white" if dark else "black",
        )


def _badge(look: Look) -> dict[str, Any]:
    return {"facecolor": look.colour if look.solid else "white", "edgecolor": look.colour, "linewidth": 1.2}


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _handles(groups: Groups, found: Diagram, style: dict[str, Look]) -> list[Any]:
    """What stands in the legend: a line per group that is drawn, then one per kind of node."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = dict.fromkeys(name for node in found.nodes for name in node.groups)
    handles: list[Any] = []
    for group in groups:
        look = style[group.name]
        if group.name in shown and look.letter:
            label = f"{look.letter}  {group.name}\n{group.size} units" + ("" if look.solid else ", not zero-invariant")
            handles.append(Patch(label=label, **look.patch))
    if any(not style[name].letter for name in shown):
        handles.append(Patch(label="not prunable", **Look("", GREY, True).patch))
    kinds = {node.kind for node in found.nodes}
    white: dict[str, Any] = {"color": "none", "markerfacecolor": "white", "markeredgecolor": "#444444"}
    for kind, marker in (("stem", "s"), ("accessory", "o"), ("joint", "D")):
        if kind in kinds:
            handles.append(Line2D([], [], marker=marker, label=kind, **white))
    return handles
