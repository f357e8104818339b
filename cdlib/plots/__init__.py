"""Figures of profiles, comparisons and groups, in one style."""

from __future__ import annotations

from cdlib.plots.columns import strips
from cdlib.plots.figures import COLOURS, LINES, MARKERS, WIDTH, bubbles, comparison, groups, style, timeline
from cdlib.plots.point_labels import label_points

__all__ = [
    "COLOURS",
    "LINES",
    "MARKERS",
    "WIDTH",
    "bubbles",
    "comparison",
    "groups",
    "label_points",
    "strips",
    "style",
    "timeline",
]
