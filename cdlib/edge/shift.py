"""What stands between a printed picture and a network, simulated by stated and seeded amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cdlib.data import Split, bits, draws
from cdlib.edge.deployed import Deployed
from cdlib.errors import CdlibError, check_seed, check_whole
from cdlib.report import wilson

STEPS = ("perspective", "blur", "light", "noise", "resampling")
"""What `disturbed` does to a picture, in this order."""
Strength = float | Mapping[str, float]


@dataclass(frozen=True)
class Simulation:
    """What a network says of pictures before a simulated camera."""

    shots: pd.DataFrame  #: By the picture's place in the split: `label`, `predicted`, `confidence`, `right`.
    accuracy: float  #: In 0..1,
    interval: tuple[float, float]  #: and the ends of its 95 % interval (`cdlib.report.wilson`).


def simulate(
    deployed: Deployed,
    split: Split,
    strength: Strength,
    *,
    shots: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Simulation:
    """Classify the pictures of a split, or `shots` of them drawn by the seed, each `disturbed` once.

    All networks see the same pictures at the same strength and seed, so results can be compared in pairs. A second shot
    of a picture would be no independent trial. A CdlibError if there are fewer pictures or other classes.
    """
    from tqdm import tqdm

    check_whole("shots", len(split) if shots is None else shots, 1, len(split))
    check_seed(seed)
    names, rows = deployed.card.classes, {}
    if int(split.labels.max()) >= len(names):
        raise CdlibError(f"{split.name} has more classes than the {len(names)} of {deployed.file}: give its own data.")
    order = np.argsort(draws("shots", len(split), seed), kind="stable")[:shots]
    for place in tqdm(order.tolist(), leave=False, disable=not progress):
        image = disturbed(split.images[place].permute(1, 2, 0).numpy(), strength, seed, place)
        predicted, confidence = next(iter(deployed.classify(image).items()))
        rows[place] = names[int(split.labels[place])], predicted, confidence
    found = pd.DataFrame.from_dict(rows, "index", columns=["label", "predicted", "confidence"])
    found["right"] = found["label"] == found["predicted"]
    return Simulation(found, float(found["right"].mean()), wilson(int(found["right"].sum()), len(found)))


def disturbed(image: np.ndarray, strength: Strength, *seeds: int) -> Any:
    """Return a picture, uint8 [height, width, 3 or 1], as a camera might see its print: a PIL image of RGB.

    Each pixel of the picture covers 4 x 4 of the camera's. At strength 1 *perspective* moves each corner by up to 0.15
    of the sides, with white paper around; *blur* is Gaussian, of 1 pixel of the picture; *light* multiplies values by
    0.4 to 2.5, each colour by 0.8 to 1.2, and a slope from 0.75 to 1.25; *noise* is Gaussian, of 0.1 of the full range
    in each pixel of the camera; *resampling* leaves a frame of 0.75 of the picture's sides. All grow with the strength,
    from 0 to 1, from the same random numbers, a function of the seeds. Without resampling, the camera's pixels are
    averaged to exactly those of the picture; so at strength 0 nothing changes.

    A mapping gives the strengths of some `STEPS` by name; the others are left out. A CdlibError for other names,
    numbers, seeds and pictures.
    """
    from PIL import Image, ImageFilter

    shape: tuple[int, ...] = getattr(image, "shape", ())
    if len(shape) != 3 or 0 in shape or shape[2] not in (1, 3) or image.dtype != np.uint8:
        what = f"{getattr(image, 'dtype', type(image).__name__)} {[*shape]}"
        raise CdlibError(f"{what} is no picture: give a uint8 array [height, width, 3 or 1].")
    for seed in seeds:
        check_seed(seed)
    amount = dict(strength) if isinstance(strength, Mapping) else dict.fromkeys(STEPS, strength)
    for name, value in amount.items():
        if name not in STEPS or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise CdlibError(f"strength {name}={value!r}: give numbers from 0 to 1, for {', '.join(STEPS)}.")
    tilt, blur, light, noise, far = (float(amount.get(name, 0)) for name in STEPS)
    random = {name: np.random.Generator(bits(name, *seeds)) for name in STEPS}
    height, width = image.shape[:2]
    picture = Image.fromarray(np.broadcast_to(image, (height, width, 3)).repeat(4, 0).repeat(4, 1))
    if tilt:  # the eight numbers by which Pillow looks up the source (u, v) of a place (x, y)
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * picture.size
        moved = corners + 0.15 * tilt * random["perspective"].uniform(-1, 1, (4, 2)) * picture.size
        pairs = [(x, y, u, v) for (x, y), (u, v) in zip(moved, corners, strict=True)]
        rows = [[x, y, 1, 0, 0, 0, -u * x, -u * y] for x, y, u, _ in pairs]
        rows += [[0, 0, 0, x, y, 1, -v * x, -v * y] for x, y, _, v in pairs]
        how = Image.Transform.PERSPECTIVE, np.linalg.solve(rows, corners.T.ravel()).tolist(), Image.Resampling.BILINEAR
        picture = picture.transform(picture.size, *how, fillcolor="white")
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(4 * blur))
    values = np.asarray(picture, np.float32)
    if light:
        exposure, angle, *colour = random["light"].uniform(-1, 1, 5)
        down, right = np.linspace(-1, 1, 4 * height)[:, None, None], np.linspace(-1, 1, 4 * width)[:, None]
        slope = 1 + 0.25 * light * (np.cos(np.pi * angle) * down + np.sin(np.pi * angle) * right)
        factor = 2.5 ** (light * exposure) * slope * (1 + 0.2 * light * np.array(colour))
        values = values * factor.astype(np.float32)
    if noise:
        values = values + np.float32(25.5 * noise) * random["noise"].standard_normal(values.shape, np.float32)
    picture = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    share = 1 - far + 0.75 / 4 * far
    sides = round(share * picture.width), round(share * picture.height)
    return picture.resize(sides, Image.Resampling.BILINEAR) if far else picture.reduce(4)
