"""The one style of all of the book's figures.

A figure has a white ground, which a dark page shows as a card; is legible at a phone's width, in grey and to the
colour-blind (every series has a marker and a line style of its own, besides its colour); and is drawn as vectors.
"""

from __future__ import annotations

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes

# Paul Tol's high-contrast scheme (personal.sron.nl/~pault): safe for the colour-blind, and four distinct greys in
# print.
COLOURS = ("#004488", "#DDAA33", "#BB5566", "#000000")
INK = "#444444"  # of outlines
MARKERS = ("o", "s", "^", "D")
LINES = ("-", "--", "-.", ":")
WIDTH = 5.0  # inches: text of 10 points stays above 8 pixels on a phone that shows 380


def style() -> None:
    """Set the book's style for all figures made from now on, and vectors as the output format inside a notebook."""
    cycle = cycler(color=COLOURS) + cycler(marker=MARKERS) + cycler(linestyle=LINES)
    mpl.rc("axes", axisbelow=True, edgecolor=INK, grid=True, prop_cycle=cycle, titlelocation="left", titlesize=11)
    mpl.rc("axes.spines", right=False, top=False)
    mpl.rc("figure", facecolor="white", figsize=(WIDTH, 3.4))
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("font", size=10)
    mpl.rc("grid", color="#dddddd", linewidth=0.8)
    mpl.rc("hatch", linewidth=0.8)
    mpl.rc("legend", frameon=False)
    mpl.rc("lines", linewidth=1.8, markersize=5)
    mpl.rc("savefig", dpi=200, facecolor="white")
    mpl.rc("svg", hashsalt="cdlib")  # the same figure gives the same file
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


def new_axes() -> Axes:
    """Return the axes of a new figure."""
    return plt.subplots(layout="constrained")[1]
