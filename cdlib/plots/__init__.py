"""Figures of profiles, comparisons and groups, in one style."""

from cdlib.plots.book_style import COLOURS, LINES, MARKERS, WIDTH, style
from cdlib.plots.figures import bubbles, comparison, strips, timeline
from cdlib.plots.group_drawing import groups
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
