"""Trained networks that ship with the book: `keep` writes one into a file without pickles, `trained` reads it.

A file is in the safetensors format: the tensors, those of two and more dimensions in float16, and a text that says in
JSON what the network is (`Card`). It is the artefact of a record, whose key the card has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdlib import files
from cdlib.errors import CdlibError, unknown
from cdlib.models.by_name import build
from cdlib.text import one_line

CARD = "cdlib_card"
"""The attribute of a network read by `trained` that holds its `Card`."""


@dataclass(frozen=True)
class Card:
    """What a trained network is and takes. It travels with the network, in its file."""

    name: str  #: Under which it ships.
    classes: list[str]  #: In the order of its outputs.
    shape: list[int]  #: Of an image, as channels, height and width.
    mean: list[float]  #: By channel, what is taken off images in 0..1,
    std: list[float]  #: and what they are divided by then.
    data: str = ""  #: The data set it was trained on.
    accuracy: float | None = None  #: On the test split, of the weights in the file.
    record: str = ""  #: The key of its record, if one was made.
    model: str = ""  #: What `cdlib.models.build` builds it by; empty for one that was cut,
    options: dict[str, Any] = field(default_factory=dict)  #: with these options.
    layout: str = "NCHW"  #: The order of the dimensions of what it takes.

    @classmethod
    def read(cls, text: str | dict[str, Any]) -> Card:
        """Return the card that a file holds as JSON, read already or not; a CdlibError if it is none."""
        try:
            card = cls(**(json.loads(text) if isinstance(text, str) else text))
            sizes = [int(size) for size in card.shape]
            numbers = [float(number) for number in (*card.mean, *card.std)]
        except (TypeError, ValueError) as error:
            raise CdlibError(f"the card of a network is damaged: {one_line(error)}.") from error
        finite = all(map(math.isfinite, numbers)) and min(numbers[len(card.mean) :], default=0) > 0
        if len(sizes) != 3 or min(sizes) < 1 or len(numbers) != 2 * sizes[0] or not finite or not card.classes:
            raise CdlibError(
                f"the card of {card.name!r} does not fit together: {card.shape}, mean {card.mean}, std {card.std}."
            )
        return card

    def takes(self, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether it means images normalised by these numbers, within 0.02."""
        given = [*self.mean, *self.std]
        asked = [*mean, *std]
        return len(given) == len(asked) and all(abs(a - b) <= 0.02 for a, b in zip(given, asked, strict=True))

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def rounded(model: nn.Module) -> None:
    """Round the parameters of two and more dimensions to float16, in place, as they are stored."""
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(_stored(tensor))


def keep(model: nn.Module, card: Card, file: Path) -> None:
    """Write a network and its card into a file; a file that is there is replaced."""
    from safetensors.torch import save

    tensors = {name: _stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    with files.atomic(file) as out:
        out.write(save(tensors, {"card": card.text()}))


def shipped_names(folder: Path | None = None) -> list[str]:
    """Return the names that `trained` knows, in alphabetical order."""
    return sorted(path.stem for path in (folder or _folder()).glob("*.safetensors"))


def trained(name: str, folder: Path | None = None) -> nn.Module:
    """Return a network that ships with the book, trained, in evaluation mode.

    Parameters
    ----------
    name : str
        One of the files in the folder, without its ending.
    folder : Path, optional
        By default ``results/networks`` of the checkout around the current folder, or else of that of this file.

    Returns
    -------
    nn.Module
        float32, in the NHWC memory format, in which a CPU runs it fastest; its `Card` is the attribute `CARD`.

    Raises
    ------
    CdlibError
        If there is no such network, or its file is damaged.
    """
    from safetensors import safe_open

    place = folder or _folder()
    file = place / f"{name}.safetensors"
    if not file.is_file():
        raise unknown("trained network", name, shipped_names(place))
    try:
        with safe_open(file, "pt") as held:
            card = Card.read(held.metadata()["card"])
            tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
    except Exception as error:
        raise CdlibError(f"{file} is damaged ({one_line(error)}): restore it from version control.") from error
    model = build(card.model, len(card.classes), **card.options)
    model.load_state_dict(tensors)  # into float32
    setattr(model, CARD, card)
    return model.eval().to(memory_format=torch.channels_last)


def _folder() -> Path:
    return (files.checkout() or Path(__file__).parents[2]) / "results" / "networks"


def _stored(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.dim() > 1 and tensor.is_floating_point() else tensor
