"""How good a network is on a split, image by image. `cdlib.train` offers it; latency and size are `cdlib.report`'s."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.data import Split, batches
from cdlib.errors import CdlibError
from cdlib.text import one_line
from cdlib.torch_state import check_numbers, device_of


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good a model is on a split."""

    accuracy: float  #: Share of images whose largest output is at their label, 0..1.
    loss: float  #: Mean cross-entropy in nats.
    correct: Tensor  #: bool [N], on the CPU, image by image in the order of the split.
    n: int  #: Number of images.


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 250) -> Evaluation:
    """Return how good `model` is on `split`, in evaluation mode; the model is left as it was.

    Runs on the model's device, in float32, and in this process alone: under `accelerate launch` every process that
    calls it goes through the whole split.

    Parameters
    ----------
    model : nn.Module
        Takes float32 [n, C, H, W], returns [n, classes].
    split : Split
        Moved to the model's device if it is elsewhere.
    batch_size : int, default 250
        Images at a time; it decides about memory and speed, not about the result (up to rounding).

    Raises
    ------
    CdlibError
        If the split is empty, the model has no numbers, cannot take the images, or has too few outputs for the labels.
    """
    if not len(split):
        raise CdlibError(f"{split.name} is empty, so there is nothing to evaluate on.")
    check_numbers(model)
    total, correct = 0.0, []
    with evaluating(model):
        for x, y in batches(split.to(device_of(model)), batch_size):
            logits = logits_of(model, x)
            if int(y.max()) >= logits.shape[1]:
                raise CdlibError(f"the model has {logits.shape[1]} outputs, but {split.name} has label {int(y.max())}.")
            total += F.cross_entropy(logits.float(), y, reduction="sum").item()
            correct.append((logits.argmax(1) == y).cpu())
    hits = torch.cat(correct)
    return Evaluation(hits.double().mean().item(), total / len(split), hits, len(split))


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run a `with` block without gradients and with every module of `models` in evaluation mode; undone after it.

    The flags are set directly, because exported models refuse `eval()`.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in reversed(modes):
            module.training = mode


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return `model(x)`, [n, classes]; whatever the model raises or returns instead becomes one clear error."""
    try:
        logits = model(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a user's network may raise anything
        raise CdlibError(f"the model cannot take an input of shape {list(x.shape)}: {one_line(error)}") from error
    return checked(logits, len(x))


def checked(logits: object, n: int) -> Tensor:
    """Return `logits` if it is a tensor [n, classes], and raise a `CdlibError` otherwise."""
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == n:
        return logits
    found = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise CdlibError(f"the model must return one tensor [{n}, classes] for {n} images, but returned {found}.")
