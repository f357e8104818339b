"""How to train: a `Recipe`, and the learning rate, optimizer and loss that follow from it. The loop is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.errors import CdlibError, check_choice

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class Recipe:
    """How to train a network. Every field is a JSON value, so that a recipe can be recorded.

    Attributes
    ----------
    epochs : int, default 10
        Passes over the training split; each leaves out its last, incomplete batch (other images every time).
    batch_size : int, default 128
        Images in a step, over all processes together.
    optimizer : {"adamw", "sgd"}, default "adamw"
        SGD has Nesterov momentum.
    lr : float, default 1e-3
        The highest learning rate, reached after the warm-up. 0.1 is usual for SGD.
    weight_decay : float, default 0.05
        For tensors with more than one number per output channel only: not for biases, norms and layer scales.
        5e-4 is usual for SGD.
    momentum : float, default 0.9
        Of SGD; the first beta of AdamW (the second is 0.999).
    warmup_epochs : float, default 1
        The learning rate rises over these, then falls to 0 along half a cosine, step by step.
    label_smoothing : float, default 0
        This share of the target is spread evenly over all classes.
    mixup : float, default 0
        If positive, each batch is mixed with itself, moved by one image, in a proportion drawn from Beta(mixup, mixup)
        (Zhang et al., arXiv 1710.09412).
    ema : float, default 0
        If positive, the decay per step of a running average of the weights, which is what is validated and returned.
        After t steps the decay is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
    augment : bool, default True
        Move and mirror the images as `cdlib.data.batches` says.
    precision : {"fp32", "bf16"}, default "fp32"
        "bf16" runs the training forward pass under autocast; weights, loss and evaluation stay in float32.
    channels_last : bool, default False
        Train in the NHWC memory format, faster on many GPUs.
    compile : bool, default False
        Train through `torch.compile`.

    Raises
    ------
    CdlibError
        If a value is not of its kind or out of its range.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    augment: bool = True
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            check_choice(name, getattr(self, name), choices)
        for name in ("epochs", "batch_size"):
            self._require(name, type(getattr(self, name)) is int and getattr(self, name) >= 1, "a whole number from 1")
        for name in ("augment", "channels_last", "compile"):
            self._require(name, type(getattr(self, name)) is bool, "true or false")
        for name in ("lr", "weight_decay", "warmup_epochs", "mixup"):
            self._require(name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number from 0")
        for name in ("momentum", "label_smoothing", "ema"):
            self._require(name, _is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1, "from 0 to below 1")
        self._require("lr", self.lr > 0, "positive")
        self._require("warmup_epochs", self.warmup_epochs <= self.epochs, f"at most epochs = {self.epochs}")

    def changed(self, given: Mapping[str, Any]) -> Recipe:
        """Return the recipe with other values of some fields, which may come from a record.

        A CdlibError if there is no such field, or as the class for a value.
        """
        for name in given:
            check_choice("field of a recipe:", name, [field.name for field in fields(self)])
        return replace(self, **given)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise CdlibError(f"{name} must be {expected}, not {getattr(self, name)!r}.")


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step 0, 1, ... of a run.

    With w warm-up steps of T in all, it is lr (step + 1) / w during the warm-up, and then half a cosine,
    lr (1 + cos(pi (step - w) / (T - w))) / 2.
    """
    total, warm = recipe.epochs * steps_per_epoch, round(recipe.warmup_epochs * steps_per_epoch)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over those of `parameters` that require gradients; a CdlibError if none does."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise CdlibError("no parameter of the model requires a gradient, so there is nothing to train.")
    groups = [
        {"params": [p for p in trained if _decays(p)], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if not _decays(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def mixed(x: Tensor, share: float) -> Tensor:
    """Return `share` of each image plus the rest of its neighbour in the batch; share 1 returns `x` itself."""
    return x if share == 1 else share * x + (1 - share) * x.roll(1, 0)


def loss(recipe: Recipe, logits: Tensor, y: Tensor, share: float) -> Tensor:
    """Return the mean loss of logits [n, classes] of `mixed(x, share)` for labels `y` [n]."""
    logits = logits.float()
    value = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
    if share == 1:
        return value
    other = F.cross_entropy(logits, y.roll(1, 0), label_smoothing=recipe.label_smoothing)
    return share * value + (1 - share) * other


def average_decay(recipe: Recipe, step: int) -> float:
    """Return the decay of the running average after step 0, 1, ... of a run."""
    return min(recipe.ema, (1 + step) / (10 + step))


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.shape[1:].numel() > 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
