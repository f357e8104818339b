"""Names beside the points of a figure, placed so that they cover neither points nor each other.

By hand, since adjustText lets the names of layers lie on each other where bubbles crowd, and takes longer.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Where a label may stand around its point: directions, nearest first, and gaps in points.
_AROUND = [np.array(d) for d in ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))]
_GAPS = (1, 10, 20, 32, 46)


def label_points(axes: Axes, points: pd.DataFrame, area: np.ndarray) -> None:
    """Write the name of each point near it, where it covers no point, no name and no edge, if there is such a place.

    Points at the same place get one label. The axes' limits must be final.

    `points` has two columns, x and y, and the names as index; `area` is that of each point in square points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout: from here on, pixels mean something
    scale = figure.dpi / 72
    centres = axes.transData.transform(points.to_numpy(float))
    radii = np.sqrt(area / np.pi) * scale
    taken = [Bbox.from_extents(*(centre - r), *(centre + r)) for centre, r in zip(centres, radii, strict=True)]
    frame = axes.get_window_extent()
    names = pd.Series(points.index.map(str)).groupby(list(points.to_numpy(float).T), sort=False)
    for _, group in names:
        first, text = group.index[0], _joined(list(group))
        half = _size(axes, text) / 2
        clear = half + radii[group.index].max()
        offsets = [direction * (clear + gap * scale) for gap in _GAPS for direction in _AROUND]
        boxes = [Bbox.from_extents(*(centres[first] + o - half), *(centres[first] + o + half)) for o in offsets]
        best = min(range(len(boxes)), key=lambda k: (_overlap(boxes[k], taken, frame), k))
        taken.append(boxes[best])
        axes.annotate(
            text,
            points.iloc[first],
            xytext=offsets[best] / scale,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0} if best >= len(_AROUND) else None,
        )


def _size(axes: Axes, text: str) -> np.ndarray:
    """Return the width and height in pixels of a label."""
    note = axes.text(0, 0, text, fontsize="small")
    extent = note.get_window_extent()
    note.remove()
    return np.array([extent.width, extent.height])


def _overlap(box: Bbox, taken: list[Bbox], frame: Bbox) -> float:
    """Return how many square pixels of a box are covered or lie outside the frame."""
    shared = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, frame)
    area = box.width * box.height
    covered = sum(part.width * part.height for part in shared if part is not None)
    return covered + area - (0 if inside is None else inside.width * inside.height)


def _joined(names: list[str]) -> str:
    """Return the label of several layers: ``features.24, 26, 28`` if they share a parent, else ``conv1 and 3 more``."""
    parents = {name.rpartition(".")[0] for name in names}
    if len(parents) == 1 and parents != {""}:
        return ", ".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
