"""What the commands share: their options, and what is found from what the user typed: networks, inputs, settings."""

from __future__ import annotations

import ast
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cdlib
from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL = (
    "One that ships trained (plain-16), a name of the book, of torchvision or timm, timm:NAME, "
    "path/to/file.py:function, or a saved FILE.cdlib."
)
WEIGHTS = "Weights: a checkpoint, or a FILE.cdlib of a network cut from this one."
INPUT = "3x32x32"

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Settings = list[str] | None
Option = Annotated[Settings, typer.Option("--option", metavar="NAME=VALUE", help="An option of the network.")]
Model = Annotated[str, typer.Argument(help=MODEL)]
Shape = Annotated[str | None, typer.Option("--input", help=f"Shape of one sample ({INPUT}, or that of the file).")]
Classes = Annotated[int | None, typer.Option(help="Width of the classifier (10).")]
Weights = Annotated[Path | None, typer.Option(help=WEIGHTS)]


def check_output(file: Path, force: bool, *endings: str) -> None:
    """Raise a CdlibError unless a file can be written: its folder exists, and it does not, or may be replaced.

    With `endings`, its name ends in one of them, in small letters or capitals.
    """
    cdlib.serialization.check_place(file)
    if file.exists() and not force:
        raise CdlibError(f"{file} exists: give another name, or --force to replace it.")
    if endings and file.suffix.lower() not in endings:
        raise CdlibError(f"{file} says no format: give a name that ends in {' or '.join(endings)}.")


def network(
    model: str, shape: str | None, classes: int | None, settings: Settings, weights: Path | None = None
) -> tuple[nn.Module, Tensor]:
    """Return the network that a user named, and one sample of zeros for it.

    A CdlibError if one of them cannot be had, or something is given twice.
    """
    if classes is not None:
        _check_alone(model, "--classes")
    example = sample(shape, [Path(model), *([weights] if weights else [])])
    return build(model, 10 if classes is None else classes, example, settings, weights), example


def sample(shape: str | None, files: list[Path]) -> Tensor:
    """Return one sample of zeros of a shape or, without it, what the first saved network that was cut ran on.

    A CdlibError if it is no shape, or the saved network takes something else than one tensor.
    """
    from torch import Tensor

    ran_on = (cdlib.serialization.example_input(file) for file in files if shape is None and is_saved(file))
    found: Any = next((given for given in ran_on if given is not None), None)
    if found is None:
        return zeros(shape or INPUT)
    if isinstance(found, tuple | list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Tensor):
        raise CdlibError("the saved network takes more than one tensor: use cdlib.load and cdlib.profile in Python.")
    return found


def zeros(text: str) -> Tensor:
    """Return one sample of zeros, float32 [1, ...], of a shape like ``3x32x32``; a CdlibError if it cannot be held."""
    import torch

    if not re.fullmatch(r"[1-9]\d*([x×,][1-9]\d*)*", text.lower(), re.ASCII):
        raise CdlibError(f"--input {text!r} is not a shape: give positive sizes such as 3x32x32, without the batch.")
    try:
        return torch.zeros(1, *(int(size) for size in re.split("[x×,]", text.lower())))
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # of sizes beyond memory, 64 bits, all digits
        raise CdlibError(f"--input {text} does not fit into memory: give smaller sizes.") from error


def build(model: str, classes: int, example: Tensor, settings: Settings, weights: Path | None = None) -> nn.Module:
    """Load or build a network; one that lets its input channels be chosen gets those of the example.

    A CdlibError if the network or its weights cannot be had, or one that is whole is given others.
    """
    for given, what in ((settings, "--option"), (weights, "--weights")):
        if given:
            _check_alone(model, what)
    if is_saved(model):
        return cdlib.load(model)
    if _ships(model):
        return cdlib.models.trained(model)
    options = _options(settings)
    if "in_channels" in cdlib.models.options(model):
        options.setdefault("in_channels", example.shape[1])
    for name in ("name", "classes", "pretrained"):
        if name in options:
            raise CdlibError(f"--option {name}=... is no option of a network: give MODEL, --classes or --weights.")
    made = cdlib.models.build(model, classes, **options)
    if weights is not None and is_saved(weights):
        return cdlib.load(weights, made)
    if weights is not None:
        cdlib.models.load_weights(made, weights)
    return made


def _options(settings: Settings) -> dict[str, Any]:
    """Return ``name=value`` texts as a mapping: literals of Python and JSON as what they stand for."""
    found: dict[str, Any] = {}
    for text in settings or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise CdlibError(f"--option {text!r} is not a setting: give name=value.")
        if name in found:
            raise CdlibError(f"--option {name} is given twice: give it once.")
        try:
            found[name] = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(value, value))
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def is_saved(name: str | Path) -> bool:
    """Whether a name is that of a file that `cdlib.save` writes."""
    return str(name).lower().endswith(".cdlib")


def _ships(name: str) -> bool:
    return name in cdlib.models.shipped_names()


def _check_alone(model: str, option: str) -> None:
    """Raise a CdlibError if a network is whole, and an option would change it."""
    if is_saved(model) or _ships(model):
        raise CdlibError(f"{model} says itself what its network is: leave out {option}.")


def has_weights(model: str, weights: Path | None) -> bool:
    """Whether a network's weights can be other than random."""
    return weights is not None or ".py:" in model or is_saved(model) or _ships(model)


def called(model: str) -> str:
    """Return what a network is called in cards and reports: no path of this machine."""
    return Path(model.partition(".py:")[2] or model).stem


def status(text: str) -> AbstractContextManager[object]:
    """Show on standard error what is being done, if that is a terminal."""
    from rich.console import Console

    return Console(stderr=True).status(text)
