"""Unstructured pruning: single weights set to zero by masks that stay while the network is trained.

The masks are those of `torch.nn.utils.prune`: a layer's ``weight`` becomes ``weight_orig`` (trained) times
``weight_mask`` (a buffer of zeros and ones) each time it is called. No tensor becomes smaller by that.

Amounts are shares of all weights of the layers, convolutions and linear layers apart, as in Francy and Singh 2024
(arXiv:2409.02134); biases and norms are left alone. Gradual pruning follows Zhu and Gupta 2017 (arXiv:1710.01878).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_choice, check_seed, check_share, check_whole, unknown
from cdlib.graph import ExampleInput, capture
from cdlib.grouping import check
from cdlib.pruning.saliency import generator
from cdlib.pruning.weight_masks import KINDS, layers_of, magnitudes, masks_of, put_on, take_off
from cdlib.torch_state import check_network, check_numbers, copied

CRITERIA = ("l1", "random")
SCOPES = ("local", "global")
Layers = dict[str, Any]
"""Layers by name; where they have masks, those that lose a share together."""


def unstructured(
    model: nn.Module,
    example_input: ExampleInput,
    conv: float = 0.5,
    linear: float = 0.5,
    *,
    by: str = "l1",
    scope: str = "local",
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a network in which a share of the weights is masked: they are zero, and stay so in training.

    `permanent` takes the masks off, and leaves the zeros.

    Parameters
    ----------
    model : nn.Module
        Any network. It may have masks already: a weight that is masked stays masked, and counts.
    example_input : tensor or tuple
        What it is called with: only layers that are called then get masks.
    conv, linear : float, default 0.5
        The share of the weights of convolutions and of linear layers that is masked, from 0 to below 1.
    by : {"l1", "random"}, default "l1"
        Mask the weights with the smallest absolute values, or any.
    scope : {"local", "global"}, default "local"
        Whether each layer loses its share, or all convolutions (all linear layers) together.
    layers : iterable of str, optional
        Names of layers, or of modules whose layers are meant; by default all.
    seed : int, default 0
        Of "random".

    Raises
    ------
    CdlibError
        If an option is out of range, a name matches no layer, a weight is computed (by weight norm, say), shared with
        another module, not finite or on the meta device, more is masked already than is asked for, or the network
        cannot be captured.
    """
    amounts = _checked({"conv": conv, "linear": linear}, by, scope, seed)
    if isinstance(layers, str):
        raise CdlibError(f"layers={layers!r} is a single text: give a list of names, [{layers!r}].")
    if layers is not None and not (isinstance(layers, Iterable) and (layers := list(layers))):
        raise CdlibError(f"layers={layers!r} names nothing: give a list of names, or leave it out for all layers.")
    check(model, example_input)
    check_numbers(model)
    called = {call.module for call in capture(model, example_input).calls}
    masked = copied(model)
    put_on(masked, _chosen(masked, called, layers))
    for kind, amount in amounts.items():
        for part in _parts(masked, kind, scope, layers):
            _mask(part, _count(part, kind, amount), by, seed)
    return masked


def permanent(model: nn.Module) -> nn.Module:
    """Return a copy of a network without masks: what was masked is zero, and trains like other weights.

    The tensors have the same names, in the same order, as before `unstructured`. Masks may be of weights, biases or
    anything; a network without masks is just copied. A CdlibError if it is none, compiled, or cannot be copied.
    """
    plain = copied(check_network(model))
    take_off(plain)
    return plain


class Gradual:
    """Let the masks of a network grow during training, fast at first and then ever more slowly.

    At step t the share is final + (first - final) (1 - (t - begin) / (end - begin))^3 (Zhu and Gupta 2017,
    arXiv:1710.01878, equation 1), where first is the share that is masked when this is made: of each layer, or of all
    of a kind together. Pass it to `cdlib.train.fit` as ``after_step``.

    Parameters
    ----------
    model : nn.Module
        What `unstructured` returned, with the first shares, for example 0.
    conv, linear : float, default 0.5
        The final shares.
    begin, end : int
        The steps at which masks begin and end to grow.
    every : int, default 1
        Steps between two updates; there is one at `end` in any case.
    by, scope, seed
        As for `unstructured`.

    Raises
    ------
    CdlibError
        If an option is out of range, the network has no masks, or more is masked already than in the end; at an
        update, if weights are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        conv: float = 0.5,
        linear: float = 0.5,
        *,
        begin: int = 0,
        end: int,
        every: int = 1,
        by: str = "l1",
        scope: str = "local",
        seed: int = 0,
    ) -> None:
        self.final = _checked({"conv": conv, "linear": linear}, by, scope, seed)
        for name, value, least in (("begin", begin, 0), ("end", end, 0), ("every", every, 1)):
            check_whole(name, value, least)
        if begin >= end:
            raise CdlibError(f"begin={begin!r}, end={end!r}: give steps with 0 <= begin < end.")
        check_network(getattr(model, "_orig_mod", model))  # of a compiled network, the masks are reached all the same
        self.begin, self.end, self.every, self.by, self.seed = begin, end, every, by, seed
        self._parts = [(kind, part, *_counted(part)) for kind in KINDS for part in _parts(model, kind, scope)]
        if not self._parts:
            raise CdlibError(f"{type(model).__name__} has no masks: call unstructured(model, ..., conv=0, linear=0).")
        for kind, part, _, _ in self._parts:
            _count(part, kind, self.final[kind])

    def amounts(self, step: int) -> dict[str, float]:
        """The shares after a step."""
        found = {}
        for kind, final in self.final.items():
            parts = [(size, first) for of, _, size, first in self._parts if of == kind]
            first = sum(first for _, first in parts) / max(1, sum(size for size, _ in parts))
            found[kind] = final + (first - final) * self._left(step)
        return found

    def __call__(self, step: int) -> None:
        """Update the masks, if the step is one at which they are."""
        if step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0):
            for kind, part, size, first in self._parts:
                final = self.final[kind] * size
                count = round(final + (first - final) * self._left(step))
                _, already = _counted(part)
                _mask(part, max(count, already), self.by, self.seed)

    def _left(self, step: int) -> float:
        """How much of the way from the first to the final share is left after a step."""
        return (1 - (min(max(step, self.begin), self.end) - self.begin) / (self.end - self.begin)) ** 3


def _parts(model: nn.Module, kind: str, scope: str, layers: list[str] | None = None) -> list[Layers]:
    """The layers of a kind that have masks: each alone, or all together."""
    wanted = {name: m for name, m in model.named_modules() if isinstance(m, KINDS[kind]) and _wanted(name, layers)}
    found = {name: layer for name, layer in wanted.items() if "weight" in masks_of(layer)}
    if scope == "local":
        return [{name: layer} for name, layer in found.items()]
    return [found] if found else []


def _counted(part: Layers) -> tuple[int, int]:
    """How many weights some layers have, and how many of them are masked."""
    masks = [layer.weight_mask for layer in part.values()]
    return sum(mask.numel() for mask in masks), sum(int((mask == 0).sum()) for mask in masks)


def _count(part: Layers, kind: str, amount: float) -> int:
    """How many weights a share is; raises a CdlibError if more are masked."""
    size, already = _counted(part)
    count = round(amount * size)
    if count < already:
        names = ", ".join(name or type(layer).__name__ for name, layer in part.items())
        raise CdlibError(
            f"{kind}={amount:g}: of the {size} weights of {names}, {already} are masked already, and masks only grow: "
            f"give at least {math.ceil(10_000 * already / size) / 10_000:.4f}."
        )
    return count


def _mask(part: Layers, count: int, by: str, seed: int) -> None:
    """Mask so many weights of some layers, in place: first those that are masked, then those with the lowest scores."""
    scores = [_scores(name, layer, by, seed).flatten() for name, layer in part.items()]
    keep = _all_but_lowest(torch.cat(scores), count).split([len(score) for score in scores])
    for layer, here in zip(part.values(), keep, strict=True):
        layer.weight_mask.copy_(here.view_as(layer.weight_mask))
        layer.weight = layer.weight_orig * layer.weight_mask


def _scores(name: str, layer: Any, by: str, seed: int) -> Tensor:
    """What decides about a weight: the lowest are masked first, those that are masked already before all others."""
    found = magnitudes(name, layer)
    if by == "random":
        found = torch.rand(found.shape, generator=generator(seed, name)).to(found.device)
    return torch.where(layer.weight_mask.bool(), found, -torch.ones_like(found))


def _all_but_lowest(scores: Tensor, count: int) -> Tensor:
    """True for all scores but the `count` lowest ones; of equal scores the first are lower."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    if count:
        highest = scores.kthvalue(count).values
        keep[scores < highest] = False
        ties = (scores == highest).nonzero().flatten()
        keep[ties[: count - int((~keep).sum())]] = False
    return keep


def _wanted(name: str, layers: list[str] | None) -> bool:
    return layers is None or any(name == wanted or name.startswith(f"{wanted}.") for wanted in layers)


def _chosen(model: nn.Module, called: set[str], layers: list[str] | None) -> Layers:
    """The convolutions and linear layers that are called and wanted."""
    found = layers_of(model, called)
    for wanted in layers or ():
        if not any(_wanted(name, [wanted]) for name in found):
            raise unknown("layer in layers:", wanted, found)
    chosen = {name: layer for name, layer in found.items() if _wanted(name, layers)}
    if not chosen:
        raise CdlibError(f"{type(model).__name__} has no convolution or linear layer that is called.")
    return chosen


def _checked(amounts: dict[str, float], by: str, scope: str, seed: int) -> dict[str, float]:
    for name, amount in amounts.items():
        check_share(name, amount)
    check_choice("criterion", by, CRITERIA)
    check_choice("scope", scope, SCOPES)
    check_seed(seed)
    return amounts
