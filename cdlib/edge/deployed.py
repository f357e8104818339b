"""A network in an ONNX file as a device has it: what it takes stands in its card, and onnxruntime runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cdlib.data import Dataset
from cdlib.edge.onnx_files import THREADS, session
from cdlib.errors import CdlibError, check_whole
from cdlib.models import CARD, Card
from cdlib.text import one_line


class Deployed:
    """An ONNX file and its card, run by onnxruntime on the CPU.

    Parameters
    ----------
    path : str or Path
        A file that `cdlib.edge.export` wrote with a card, or any other of one input [n, channels, height, width] and
        one output [n, classes], if the card is given.
    card : Card, optional
        In place of the one in the file.
    threads : int, default 1
        Of onnxruntime.

    Raises
    ------
    CdlibError
        If onnxruntime is not installed, the file is missing, damaged or without a card, or does not fit its card.
    """

    def __init__(self, path: str | Path, *, card: Card | None = None, threads: int = 1) -> None:
        check_whole("threads", threads, 1, THREADS)
        self.file = Path(path).expanduser()
        if not self.file.is_file():
            raise CdlibError(f"there is no file {self.file}: give an ONNX file that cdlib.edge.export wrote.")
        self.session = session(self.file, threads)
        text = self.session.get_modelmeta().custom_metadata_map.get(CARD)
        if card is None and text is None:
            raise CdlibError(
                f"{self.file} has no card, so its classes and normalisation are unknown: export it with cdlib."
            )
        self.card = card or Card.read(text or "")
        self._check()

    def _check(self) -> None:
        given, made = self.session.get_inputs(), self.session.get_outputs()
        if self.card.layout != "NCHW" or len(given) != 1 or len(made) != 1 or given[0].type != "tensor(float)":
            raise CdlibError(f"{self.file} must take one float tensor NCHW and give one; export it with cdlib.")
        for what, sizes, wanted in (
            ("takes", given[0].shape[1:], self.card.shape),
            ("gives", made[0].shape[1:], [len(self.card.classes)]),
        ):
            if len(sizes) != len(wanted) or any(
                isinstance(a, int) and a != b for a, b in zip(sizes, wanted, strict=True)
            ):
                raise CdlibError(
                    f"{self.file} {what} {sizes}, but its card says {wanted}: one of them is of another network."
                )

    def prepared(self, image: Any) -> np.ndarray:
        """Return a picture as the network takes it: float32 [1, channels, height, width].

        It is turned upright as its EXIF data say, converted to the colours of the network, scaled so that it covers the
        network's input (bilinear, with antialiasing), cut to its middle, and normalised.

        Parameters
        ----------
        image : PIL image, path, or uint8 array [height, width] or [height, width, 3] of RGB
            Of any size; grey of 16 bits, also as a uint16 array [height, width], is scaled to 8.

        Raises
        ------
        CdlibError
            If it is not a picture of 8 or 16 bits.
        """
        from PIL import Image, ImageOps

        channels, height, width = self.card.shape
        upright = opened(image, "L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(fitted, np.float32).reshape(height, width, channels) / 255
        normalised = (pixels - np.array(self.card.mean, np.float32)) / np.array(self.card.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs, float32 [n, classes], for prepared pictures, float32 [n, channels, height, width]."""
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]

    def classify(self, image: Any) -> dict[str, float]:
        """Return the probability of each class for a picture, as `prepared` takes it; the likeliest class first."""
        [found] = self.logits(self.prepared(image))
        shares = np.exp(found - found.max())
        shares /= shares.sum()
        return {self.card.classes[place]: float(shares[place]) for place in np.argsort(-shares)}


def card_for(name: str, dataset: Dataset, model: nn.Module | None = None) -> Card:
    """Return the card of a network of one's own, for `cdlib.edge.export`: what images it takes, and what it says.

    Parameters
    ----------
    name : str
        Of the network.
    dataset : Dataset
        What it was trained on: its classes, shape and normalisation go into the card.
    model : nn.Module, optional
        The network; if it brought a card of its own, both must say the same normalisation.

    Raises
    ------
    CdlibError
        If they do not.
    """
    given: Card | None = getattr(model, CARD, None)
    mean, std = list(dataset.train.mean), list(dataset.train.std)
    if given and not given.takes(mean, std):
        raise CdlibError(f"{name} takes images normalised by {given.mean} and {given.std}, not {mean} and {std}.")
    source = dataset.name.partition(":")[0]  # of a folder, not its path
    return Card(name, list(dataset.classes), list(dataset.shape), mean, std, source)


def opened(image: Any, mode: str = "RGB") -> Any:
    """Return what `Deployed.prepared` takes as an upright PIL image; a CdlibError if it is no picture."""
    from PIL import Image, ImageOps

    try:
        picture = image if isinstance(image, Image.Image) else None
        if isinstance(image, np.ndarray) and image.dtype not in (np.uint8, np.uint16):
            raise CdlibError(f"an array of {image.dtype}, give uint8")
        if picture is None:
            picture = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] in "FI":  # what Pillow would clip at 255
            numbers = np.asarray(picture)
            if picture.mode == "F" or not 0 <= numbers.min() <= numbers.max() <= 65535:
                raise CdlibError("its numbers are floats or of 32 bits, give 8 or 16")
            picture = Image.fromarray((numbers / 257).round().astype(np.uint8))
        return picture.convert(mode)
    except Exception as error:
        what = image if isinstance(image, str | Path) else "this"
        raise CdlibError(f"{what} is no picture: {one_line(error)}.") from error
