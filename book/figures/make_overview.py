"""Draw the picture of the README and the landing page: where the cost of VGG-16 is, counted by `cdlib.profile`.

`python book/figures/make_overview.py` writes `overview-light.svg` and `overview-dark.svg` beside this file. They are
text without a font inside, the same on every machine, so `tests/book/test_readme.py` can check that they are current.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch

import cdlib
from cdlib.complexity import in_units

FOLDER = Path(__file__).resolve().parent
# What a panel shows, its unit, and its title.
PANELS = (("params", "", "Parameters"), ("macs", "", "MACs"), ("activation_bytes", "B", "Activations"))
# Filled bars differ from outlined ones by lightness, so that the picture also reads in grey.
THEMES = {
    "light": {"ink": "#1f2328", "quiet": "#59636e", "bar": "#1f5fa8", "faint": "#dbe7f5", "line": "#c3ccd5"},
    "dark": {"ink": "#e6edf3", "quiet": "#aab4bf", "bar": "#86b9f7", "faint": "#22344a", "line": "#4a5560"},
}
WIDTH, PANEL, BARS, TOP = 480, 114, 64, 34  # width; height of a panel and of its bars; space above the first panel
LEFT, STEP, GAP, BAR = 12, 26, 8, 21  # left edge; distance of bars; extra space between groups; width of a bar


def main() -> None:
    """Write both pictures."""
    for theme in THEMES:
        (FOLDER / f"overview-{theme}.svg").write_text(draw(theme), encoding="utf-8")


@cache
def counts() -> pd.DataFrame:
    """Return a row per layer with weights: its map size and counts, pooling added to the layer before it."""
    with torch.device("meta"):
        profile = cdlib.profile(cdlib.models.build("vgg16_cifar"), torch.zeros(1, 3, 32, 32))
    layers = profile.layers
    layer = (layers.macs > 0).cumsum().rename("number")
    table = layers.groupby(layer)[[name for name, _, _ in PANELS]].sum()
    shapes = layers[layers.macs > 0].output_shape
    table["map"] = [f"{shape[2]}×{shape[3]}" if len(shape) == 4 else "linear" for shape in shapes]
    return table


def largest(values: Sequence[int]) -> list[int]:
    """Return the positions of the fewest largest values that hold half of the sum, and all that tie the last."""
    total, bound = 0, 0
    for bound in sorted(values, reverse=True):
        total += bound
        if 2 * total >= sum(values):
            break
    return [i for i, value in enumerate(values) if value >= bound]


def draw(theme: str) -> str:
    """Return the picture in one of `THEMES` as SVG."""
    colour, table = THEMES[theme], counts()
    maps = [(name, len(list(group))) for name, group in groupby(table["map"])]
    group = [number for number, (_, size) in enumerate(maps) for _ in range(size)]
    at = [LEFT + STEP * i + GAP * number for i, number in enumerate(group)]
    scale = BARS / max(table[name].max() / table[name].sum() for name, _, _ in PANELS)
    body = [_text(LEFT, 18, f"VGG-16 on 32×32 images: what each of its {len(table)} layers costs", colour["quiet"], 13)]
    for number, (name, unit, title) in enumerate(PANELS):
        body += _panel(table[name].tolist(), title, unit, at, TOP + PANEL * number, scale, colour)
    bottom = TOP + PANEL * len(PANELS)
    for number, (name, size) in enumerate(maps):
        first = group.index(number)
        middle = (at[first] + at[first + size - 1] + BAR) / 2
        body.append(_text(middle, bottom + 8, name, colour["quiet"], 12, anchor="middle"))
    note = "Filled: the largest layers, until they hold half. Below the bars: size of the maps."
    body.append(_text(LEFT, bottom + 30, note, colour["quiet"], 11.5))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 46}" width="{WIDTH}" role="img"'
    head += ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    title = "<title>Where the parameters, MACs and activations of VGG-16 are</title>"
    return "\n".join([head, title, *body, "</svg>\n"])


def _panel(
    values: list[int], title: str, unit: str, at: list[int], top: int, scale: float, colour: dict[str, str]
) -> list[str]:
    """Return one row of bars under its title; all rows have the same scale."""
    total, filled, base = sum(values), largest(values), top + PANEL - 12
    summary = f"{len(filled)} of {len(values)} layers hold {_percent(sum(values[i] for i in filled) / total)}"
    right = at[-1] + BAR
    lines = [
        _text(LEFT, top + 14, f"{title}: {in_units(total, unit)}", colour["ink"], 14, bold=True),
        _text(right, top + 14, summary, colour["ink"], 13, anchor="end"),
        f'<path d="M{LEFT - 4} {base + 0.5}H{right + 4}" stroke="{colour["line"]}"/>',
    ]
    for i, (x, value) in enumerate(zip(at, values, strict=True)):
        height = max(scale * value / total, 0.5)
        fill = colour["bar"] if i in filled else colour["faint"]
        lines.append(
            f'<rect x="{x + 0.5}" y="{base - height:.1f}" width="{BAR - 1}" height="{height:.1f}" fill="{fill}"'
            f' stroke="{colour["bar"]}"/>'
        )
    peak = values.index(max(values))
    y = base - scale * values[peak] / total - 4
    lines.append(_text(at[peak] + BAR / 2, y, _percent(values[peak] / total), colour["ink"], 12, anchor="middle"))
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _text(x: float, y: float, text: str, fill: str, size: float, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>{text}</text>'


if __name__ == "__main__":
    main()
