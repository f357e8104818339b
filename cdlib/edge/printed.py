"""Test pictures on paper, to be held before a camera: an A4 PDF with a score sheet and, last, the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cdlib import files
from cdlib.data import Dataset, draws
from cdlib.errors import CdlibError, check_seed, check_whole

PAGE = (210, 297)
"""A4, width and height in mm."""
MARGIN, TOP, GAP, ROWS = 15, 35, 12, 40  # mm beside, above and between pictures; lines of a page of text


def print_samples(dataset: Dataset, path: Path, *, each: int = 2, side: float = 50.0, seed: int = 0) -> pd.DataFrame:
    """Write `each` test pictures of each class into a PDF, drawn by the seed, in an order that does not tell the class.

    The longer side of a picture has `side` mm, from 10 to 180, and its pixels are printed as squares. The same pictures
    and seed give the same bytes in the same version of matplotlib. The answers are returned, by the `id` of a picture:
    `image`, its place in the test split, and `label`. A CdlibError if a class has too few pictures.
    """
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.style import context

    check_whole("each", each, 1)
    check_seed(seed)
    if not 10 <= side <= PAGE[0] - 2 * MARGIN:
        raise CdlibError(f"side={side!r}: give millimetres from 10 to {PAGE[0] - 2 * MARGIN}.")
    test, names = dataset.test, dataset.classes
    order = np.argsort(draws("printed", len(test), seed), kind="stable")
    labels = test.labels.numpy()[order]
    chosen = [order[labels == label][:each] for label in range(len(names))]
    if short := [name for name, found in zip(names, chosen, strict=True) if len(found) < each]:
        raise CdlibError(f"{test.name} has fewer than {each} pictures of {short[0]!r}: ask for fewer of each class.")
    images = order[np.isin(order, np.concatenate(chosen))]
    ids = pd.Index([f"{number:02}" for number in range(1, len(images) + 1)], name="id")
    key = pd.DataFrame({"image": images, "label": [names[test.labels[i]] for i in images]}, ids)
    across, down = (int((room + GAP) // (side + GAP)) for room in (PAGE[0] - 2 * MARGIN, PAGE[1] - TOP - MARGIN))
    with files.atomic(path) as out, context("default"), PdfPages(out, metadata={"CreationDate": None}) as pdf:

        def page(*lines: str) -> Figure:
            figure = Figure((PAGE[0] / 25.4, PAGE[1] / 25.4))
            how: Any = {"va": "top", "family": "monospace", "linespacing": 1.6, "parse_math": False}
            figure.text(MARGIN / PAGE[0], 1 - MARGIN / PAGE[1], "\n".join(lines), **how)
            return figure

        for first in range(0, len(key), across * down):
            figure = page(f"{dataset.name}, seed {seed}", f"{side:g} mm if this line has 100 mm: print at 100 %")
            figure.add_artist(Line2D([MARGIN / PAGE[0], (MARGIN + 100) / PAGE[0]], [1 - 28 / PAGE[1]] * 2, color="k"))
            for place, image in enumerate(images[first : first + across * down]):
                left, top = (number * (side + GAP) for number in (place % across, place // across))
                corner = ((MARGIN + left) / PAGE[0], (PAGE[1] - TOP - top - side) / PAGE[1])
                axes = figure.add_axes((*corner, side / PAGE[0], side / PAGE[1]))
                pixels = test.images[image].expand(3, -1, -1).permute(1, 2, 0).numpy()
                times = max(1, 512 // max(pixels.shape))  # or viewers might enlarge and smooth them
                axes.imshow(pixels.repeat(times, 0).repeat(times, 1), interpolation="none")
                axes.set_title(ids[first + place])
                axes.set_axis_off()
            pdf.savefig(figure)
        for title, lines in {
            "Network, camera, light, distance:\n\n\nid  predicted": [
                f"{name}  {'_' * 24}  right: ____" for name in ids
            ],
            "Answers\n": [f"{name}  {row.label} (test picture {row.image})" for name, row in key.iterrows()],
        }.items():
            for first in range(0, len(lines), ROWS):
                pdf.savefig(page(title, *lines[first : first + ROWS]))
    return key
