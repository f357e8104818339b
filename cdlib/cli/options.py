"""What the commands share: their options, and how a network is found from what the user typed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL = "A name of the book, of torchvision or timm, timm:NAME, path/to/file.py:function, or a saved FILE.cdlib."
WEIGHTS = "Weights: a checkpoint, or a FILE.cdlib of a network cut from this one."
INPUT = "3x32x32"

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Settings = list[str] | None
Option = Annotated[Settings, typer.Option("--option", metavar="NAME=VALUE", help="An option of the network.")]
Model = Annotated[str, typer.Argument(help=MODEL)]
Shape = Annotated[str | None, typer.Option("--input", help=f"Shape of one sample ({INPUT}, or that of the file).")]
Classes = Annotated[int | None, typer.Option(help="Width of the classifier (10).")]
Weights = Annotated[Path | None, typer.Option(help=WEIGHTS)]


def network(
    model: str, shape: str | None, classes: int | None, settings: Settings, weights: Path | None = None
) -> tuple[nn.Module, Tensor]:
    """Return the network that a user named, and one sample of zeros for it.

    A CdlibError if one of them cannot be had, or something is given twice.
    """
    if is_saved(model) and (classes is not None or settings or weights is not None):
        raise CdlibError(f"{model} says itself what its network is: leave out --classes, --option and --weights.")
    example = sample(shape, [Path(model), *([weights] if weights else [])])
    return build(model, 10 if classes is None else classes, example, settings, weights), example


def sample(shape: str | None, files: list[Path]) -> Tensor:
    """Return one sample of zeros of a shape or, without it, what the first saved network that was cut ran on.

    A CdlibError if it is no shape, or the saved network takes something else than one tensor.
    """
    from torch import Tensor

    from cdlib.cli import arguments
    from cdlib.serialization.network_files import example_input

    found: Any = None
    for file in files if shape is None else []:
        if is_saved(file) and found is None:
            found = example_input(file)
    if found is None:
        return arguments.sample(shape or INPUT)
    if isinstance(found, tuple | list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor):
        raise CdlibError("the saved network takes more than one tensor: use cdlib.load and cdlib.profile in Python.")
    return found


def build(model: str, classes: int, example: Tensor, settings: Settings, weights: Path | None = None) -> nn.Module:
    """Load or build a network; one that lets its input channels be chosen gets those of the example.

    Raises
    ------
    CdlibError
        If the network or its weights cannot be had.
    """
    from cdlib import models
    from cdlib.cli import arguments
    from cdlib.serialization import network_files as files

    if is_saved(model):
        return files.load(model)
    options = {key: arguments.literal(value) for key, value in arguments.pairs("--option", settings).items()}
    if "in_channels" in models.options(model):
        options.setdefault("in_channels", example.shape[1])
    made = models.build(model, classes, **options)
    if weights is not None and is_saved(weights):
        return files.load(weights, made)
    if weights is not None:
        models.load_weights(made, weights)
    return made


def is_saved(name: str | Path) -> bool:
    """Whether a name is that of a file that `cdlib.save` writes."""
    return str(name).endswith(".cdlib")


def has_weights(model: str, weights: Path | None) -> bool:
    """Whether a network's weights can be other than random."""
    return weights is not None or ".py:" in model or is_saved(model)


def status(text: str) -> AbstractContextManager[object]:
    """Show on standard error what is being done, if that is a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(text)
