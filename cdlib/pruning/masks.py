"""Unstructured pruning: single weights set to zero by masks that stay while the network is trained.

The masks are those of `torch.nn.utils.prune`: a layer's ``weight`` becomes ``weight_orig`` (trained) times
``weight_mask`` (a buffer of zeros and ones) each time it is called. No tensor becomes smaller by that.

Amounts are shares of all weights of the layers, convolutions and linear layers apart, as in Francy and Singh 2024
(arXiv:2409.02134); biases and norms are left alone. Gradual pruning follows Zhu and Gupta 2017 (arXiv:1710.01878).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from cdlib.capture import ExampleInput, capture
from cdlib.errors import CdlibError, unknown
from cdlib.pruning.inputs import check
from cdlib.pruning.saliency import check_ratio, generator
from cdlib.pruning.subnet import copied

CRITERIA = ("l1", "random")
SCOPES = ("local", "global")
_KINDS: dict[str, Any] = {"conv": nn.modules.conv._ConvNd, "linear": nn.Linear}


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

    Returns
    -------
    nn.Module
        With a mask in each of the layers. `permanent` takes the masks off, and leaves the zeros.

    Raises
    ------
    CdlibError
        If an option is out of range, a name matches no layer, a weight is shared by layers, more is masked already
        than is asked for, or the network cannot be captured.
    """
    amounts = _checked({"conv": conv, "linear": linear}, by, scope)
    if isinstance(layers, str):
        raise CdlibError(f"layers={layers!r} is a single text: give a list of names, [{layers!r}].")
    layers = None if layers is None else list(layers)
    check(model, example_input)
    called = {call.module for call in capture(model, example_input).calls}
    masked = copied(model)
    for module in _chosen(masked, called, layers).values():
        if not prune.is_pruned(module):
            prune.identity(module, "weight")
    grow(masked, amounts, by=by, scope=scope, seed=seed, layers=layers)
    return masked


def permanent(model: nn.Module) -> nn.Module:
    """Return a copy of a network without masks: what was masked is zero, and trains like other weights.

    Parameters
    ----------
    model : nn.Module
        A network with masks; one without is just copied.

    Returns
    -------
    nn.Module
        With tensors of the same names, in the same order, as before `unstructured`.
    """
    plain = copied(model)
    for module in plain.modules():
        if _has_mask(module):
            prune.remove(module, "weight")
            if "bias" in module._parameters:  # the weight came to the end
                module._parameters["bias"] = module._parameters.pop("bias")
    return plain


class Gradual:
    """Let the masks of a network grow during training, fast at first and then ever more slowly.

    At step t the share is final + (first - final) (1 - (t - begin) / (end - begin))^3 (Zhu and Gupta 2017,
    arXiv:1710.01878, equation 1). Pass it to `cdlib.train.fit` as ``after_step``.

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
        If an option is out of range or the network has no masks.
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
        self.final = _checked({"conv": conv, "linear": linear}, by, scope)
        if not 0 <= begin < end:
            raise CdlibError(f"begin={begin!r}, end={end!r}: give steps with 0 <= begin < end.")
        if every < 1:
            raise CdlibError(f"every={every!r}: give a number of steps of at least 1.")
        if not any(map(_has_mask, model.modules())):
            raise CdlibError(f"{type(model).__name__} has no masks: call unstructured(model, ..., conv=0, linear=0).")
        self.model, self.begin, self.end, self.every = model, begin, end, every
        self.by, self.scope, self.seed = by, scope, seed
        self.first = {kind: _share(_layers(model, kind).values()) for kind in _KINDS}

    def amounts(self, step: int) -> dict[str, float]:
        """The shares after a step."""
        left = 1 - (min(max(step, self.begin), self.end) - self.begin) / (self.end - self.begin)
        return {kind: final + (self.first[kind] - final) * left**3 for kind, final in self.final.items()}

    def __call__(self, step: int) -> None:
        """Update the masks, if the step is one at which they are."""
        if step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0):
            grow(self.model, self.amounts(step), by=self.by, scope=self.scope, seed=self.seed)


def grow(
    model: nn.Module,
    amounts: dict[str, float],
    *,
    by: str = "l1",
    scope: str = "local",
    seed: int = 0,
    layers: list[str] | None = None,
) -> None:
    """Mask more weights of a network that has masks, in place.

    Parameters
    ----------
    model : nn.Module
        What `unstructured` returned.
    amounts : dict
        The share for "conv" and "linear" that shall be masked in the end.
    by, scope, seed, layers
        As for `unstructured`.

    Raises
    ------
    CdlibError
        If more is masked already.
    """
    for kind, amount in amounts.items():
        of_kind = {name: module for name, module in _layers(model, kind).items() if _wanted(name, layers)}
        parts = [of_kind] if scope == "global" else [{name: module} for name, module in of_kind.items()]
        for part in filter(None, parts):
            scores = torch.cat([_scores(name, module, by, seed).flatten() for name, module in part.items()])
            count, already = round(amount * len(scores)), int((scores < 0).sum())
            if count < already:
                names = ", ".join(name or type(model).__name__ for name in part)
                raise CdlibError(
                    f"{kind}={amount:g}: of the {len(scores)} weights of {names}, {already} are masked "
                    f"already, and masks only grow: give at least {already / len(scores):.4f}."
                )
            keep = _all_but_lowest(scores, count)
            for module, here in zip(
                part.values(), keep.split([m.weight_mask.numel() for m in part.values()]), strict=True
            ):
                module.weight_mask.copy_(here.view_as(module.weight_mask))
                module.weight = module.weight_orig * module.weight_mask


def _scores(name: str, module: Any, by: str, seed: int) -> Tensor:
    """What decides about a weight: the lowest are masked first, those that are masked already before all others."""
    with torch.no_grad():
        weight, mask = module.weight_orig, module.weight_mask
        if by == "l1":
            found = weight.abs().float()
        else:
            found = torch.rand(weight.shape, generator=generator(seed, name)).to(weight.device)
        return torch.where(mask.bool(), found, -torch.ones_like(found))


def _all_but_lowest(scores: Tensor, count: int) -> Tensor:
    """True for all scores but the `count` lowest ones; of equal scores the first are lower."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    if count:
        highest = scores.kthvalue(count).values
        keep[scores < highest] = False
        ties = (scores == highest).nonzero().flatten()
        keep[ties[: count - int((~keep).sum())]] = False
    return keep


def _share(modules: Iterable[Any]) -> float:
    """The share of weights that is masked."""
    masks = [module.weight_mask for module in modules]
    return 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) if masks else 0.0


def _has_mask(module: nn.Module) -> bool:
    return hasattr(module, "weight_mask") and hasattr(module, "weight_orig")


def _layers(model: nn.Module, kind: str) -> dict[str, Any]:
    """The layers of a kind that have masks."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, _KINDS[kind]) and _has_mask(module)
    }


def _wanted(name: str, layers: list[str] | None) -> bool:
    return layers is None or any(name == wanted or name.startswith(f"{wanted}.") for wanted in layers)


def _chosen(model: nn.Module, called: set[str], layers: list[str] | None) -> dict[str, Any]:
    """The convolutions and linear layers that are called and wanted."""
    found: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, tuple(_KINDS.values())) and name in called
    }
    for wanted in layers or ():
        if not any(_wanted(name, [wanted]) for name in found):
            raise unknown("layer in layers:", wanted, found)
    weights = Counter(id(getattr(module, "weight_orig", module.weight)) for module in found.values())
    chosen = {name: module for name, module in found.items() if _wanted(name, layers)}
    for name, module in chosen.items():
        if weights[id(getattr(module, "weight_orig", module.weight))] > 1:
            raise CdlibError(f"{name} shares its weight with another layer, which a mask would part: leave it out.")
    if not chosen:
        raise CdlibError(f"{type(model).__name__} has no convolution or linear layer that is called.")
    return chosen


def _checked(amounts: dict[str, float], by: str, scope: str) -> dict[str, float]:
    for name, amount in amounts.items():
        check_ratio(amount, name)
    if by not in CRITERIA:
        raise unknown("criterion", by, CRITERIA)
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    return amounts
