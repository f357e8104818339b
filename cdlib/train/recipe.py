"""How to train: a `Recipe`, and the learning rate, optimizer and loss that follow from it. The loop is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.errors import CdlibError, check_choice

CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "precision": ("bf16", "fp32"),
    "decay": ("cosine", "linear"),
    "flips": ("random", "alternating"),
}

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


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
    norm_bias_lr : float, default 1
        The learning rate of the biases of normalisation layers, times the others'.
    warmup_epochs : float, default 1
        The learning rate rises in a straight line over these, step by step, then falls till the end.
    decay : {"cosine", "linear"}, default "cosine"
        Along which it falls: half a cosine or a straight line.
    lr_start, lr_end : float, default 0
        Where it rises from and falls to, as shares of `lr`.
    label_smoothing : float, default 0
        This share of the target is spread evenly over all classes.
    mixup : float, default 0
        If positive, each batch is mixed with itself, moved by one image, in a proportion drawn from Beta(mixup, mixup)
        (Zhang et al., arXiv 1710.09412).
    ema : float, default 0
        If positive, the decay per step of a running average of the weights, which is what is validated and returned.
        After t steps the decay is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
    distill : float, default 0
        This share of the loss is how far the outputs are from those of the teacher that `cdlib.train.fit` is given.
    temperature : float, default 4
        By which both outputs are divided before they are compared.
    augment : bool, default True
        Move and mirror the images as `cdlib.data.batches` says.
    flips : {"random", "alternating"}, default "random"
        Whether each image is mirrored by chance in every epoch, or by chance in the first and then in every other one.
    shift : int or None, default None
        By how many pixels images are moved at most; None for an eighth of their shorter side, at most 4.
    precision : {"fp32", "bf16"}, default "fp32"
        "bf16" runs the forward pass in training, and a teacher's, under autocast; weights, loss and evaluation stay in
        float32.
    channels_last : bool, default False
        Train in the NHWC memory format, faster on many GPUs and processors; the network gets its own back.
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
    norm_bias_lr: float = 1.0
    warmup_epochs: float = 1.0
    decay: str = "cosine"
    lr_start: float = 0.0
    lr_end: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    augment: bool = True
    flips: str = "random"
    shift: int | None = None
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("epochs", "batch_size"):
            self._require(name, type(getattr(self, name)) is int and getattr(self, name) >= 1, "a whole number from 1")
        for name in ("augment", "channels_last", "compile"):
            self._require(name, type(getattr(self, name)) is bool, "true or false")
        for name in ("lr", "weight_decay", "warmup_epochs", "mixup", "norm_bias_lr"):
            self._require(name, _is_number(getattr(self, name)) and getattr(self, name) >= 0, "a number from 0")
        for name in ("momentum", "label_smoothing", "ema"):
            self._require(name, _is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("lr_start", "lr_end", "distill"):
            self._require(name, _is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1, "from 0 to 1")
        fits = self.shift is None or (type(self.shift) is int and self.shift >= 0)
        self._require("shift", fits, "a whole number of pixels, or None")
        for name in ("lr", "temperature"):
            self._require(name, _is_number(getattr(self, name)) and getattr(self, name) > 0, "positive")
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

    With w warm-up steps of T in all, it is lr (s + (1 - s) (step + 1) / w) during the warm-up, and then
    lr (e + (1 - e) f(t)) with t = (step - w) / (T - w), where f is (1 + cos(pi t)) / 2 or 1 - t, and s and e are
    `lr_start` and `lr_end`.
    """
    total, warm = recipe.epochs * steps_per_epoch, round(recipe.warmup_epochs * steps_per_epoch)
    if step < warm:
        return recipe.lr * (recipe.lr_start + (1 - recipe.lr_start) * (step + 1) / warm)
    t = (step - warm) / (total - warm)
    left = 1 - t if recipe.decay == "linear" else 0.5 * (1 + math.cos(math.pi * t))
    return recipe.lr * (recipe.lr_end + (1 - recipe.lr_end) * left)


def optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the parameters of a network that require gradients.

    Its parameter groups have `lr_scale`, by which their learning rate is multiplied. A CdlibError if nothing requires
    gradients.
    """
    shifts = {id(m.bias) for m in model.modules() if isinstance(m, _NORMS)} if recipe.norm_bias_lr != 1 else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            key = (recipe.weight_decay if _decays(p) else 0.0, recipe.norm_bias_lr if id(p) in shifts else 1.0)
            groups.setdefault(key, []).append(p)
    if not groups:
        raise CdlibError("no parameter of the model requires a gradient, so there is nothing to train.")
    made = [
        {"params": groups[key], "weight_decay": key[0], "lr_scale": key[1], "lr": recipe.lr * key[1]}
        for key in sorted(groups, reverse=True)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(made, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(made, lr=recipe.lr, betas=(recipe.momentum, 0.999))


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


def distilled(recipe: Recipe, value: Tensor, logits: Tensor, wanted: Tensor) -> Tensor:
    """Return a loss, with its share of that against a teacher's logits [n, classes].

    The latter is the Kullback-Leibler divergence of the softened outputs times the square of the temperature, by which
    its gradients keep their size (Hinton et al. 2015, arXiv:1503.02531).
    """
    own, other = (F.log_softmax(out.float() / recipe.temperature, 1) for out in (logits, wanted))
    distance = F.kl_div(own, other, reduction="batchmean", log_target=True) * recipe.temperature**2
    return (1 - recipe.distill) * value + recipe.distill * distance


def average_decay(recipe: Recipe, step: int) -> float:
    """Return the decay of the running average at step 0, 1, ... since it began, and 0 before."""
    return min(recipe.ema, (1 + step) / (10 + step)) if step >= 0 else 0.0


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.shape[1:].numel() > 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
