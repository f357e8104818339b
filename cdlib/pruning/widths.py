"""New widths for a network before it is trained: complexity-driven pruning, and the controls that it must beat.

Zawish, Davy and Abraham 2022 (arXiv:2208.12816) draw layers at random, each with a probability that is its share of the
network's parameters (PA), FLOPs (FA) or memory (MA), and take filters off the drawn layer until enough is gone. No
filter is ranked; what is left is trained once. The paper's abstract leaves choices open, which are options here. A
draw here is of a group, so that whatever belongs to a filter goes with it.

`uniform_width` takes the same share off all groups, `random_draw` draws all groups with the same probability. What they
reach at the same cost is what the shares are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cdlib.capture import ExampleInput
from cdlib.errors import CdlibError, unknown
from cdlib.pruning.groups import Groups, find_groups
from cdlib.pruning.meter import RESOURCES, Meter
from cdlib.pruning.saliency import check_ratio
from cdlib.pruning.subnet import cut, slices_of

MODES = {"PA": "params", "FA": "macs", "MA": "activation_bytes"}
"""What the modes are aware of: the resource of `cdlib.profile` that a target counts, and that weighs the draws."""

METHODS = ("complexity_driven", "uniform_width", "random_draw")


@dataclass(frozen=True)
class Plan:
    """What was drawn.

    Attributes
    ----------
    drop : dict from str to list of int
        The units to remove, by group: for `cdlib.remove`.
    trace : tuple of (str, int)
        Every draw in order: the group, and how many units it lost.
    before, after : dict from str to int
        ``params``, ``macs`` and ``activation_bytes`` of the network and of what is left.
    """

    drop: dict[str, list[int]]
    trace: tuple[tuple[str, int], ...]
    before: dict[str, int]
    after: dict[str, int]


def complexity_driven(
    model: nn.Module,
    example_input: ExampleInput,
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    step: int = 1,
    recompute: bool = True,
    min_width: int = 1,
    round_to: int = 1,
    stop_at: str | None = None,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
) -> nn.Module:
    """Return a network with widths drawn by complexity: PA, FA or MA pruning (Zawish et al. 2022, arXiv:2208.12816).

    A group is drawn with a probability that is its share of the network's complexity, and loses `step` of its units,
    chosen at random; again until `target` is reached. What is left keeps its weights: to train it from scratch,
    as the paper does, build the network, prune it and train it.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not touched.
    example_input : tensor or tuple
        What it is called with. FLOPs and memory depend on its size.
    mode : {"PA", "FA", "MA"}, default "PA"
        Whether shares are of parameters, of MACs (half the FLOPs) or of the bytes of activations.
    target : float, default 0.5
        The share of the network's own total of that resource to remove, from 0 to below 1. The last draw is the
        one that reaches it.
    seed : int, default 0
        Of the draws. The same seed draws the same.
    step : int, default 1
        Units that a draw removes.
    recompute : bool, default True
        Whether the shares are those of what is left, computed anew after each draw, or those of the full network.
    min_width : int, default 1
        Units that every group keeps. A group that would go below is not drawn.
    round_to : int, default 1
        Widths are a multiple of this: a draw takes what is above one off, too.
    stop_at : {"params", "macs", "activation_bytes"}, optional
        The resource that `target` is a share of; by default the one of `mode`. It makes modes comparable.
    keep : iterable of str, optional
        Modules or parameters, by name, of which nothing may be removed.
    batch_dim : int or None, default 0
        The dimension of the input that counts samples; None if there is none.

    Returns
    -------
    nn.Module

    Raises
    ------
    CdlibError
        If an option is out of range, nothing is prunable, or no widths reach the target (the error says what they
        reach); or as `cdlib.remove`.
    """
    options = _Options(mode, target, seed, step, recompute, min_width, round_to, stop_at)
    return _method("complexity_driven", model, example_input, options, keep, batch_dim)


def uniform_width(
    model: nn.Module,
    example_input: ExampleInput,
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
    **options: Any,
) -> nn.Module:
    """Return a network in which all groups lost the same share of their units: the plain way to make it smaller.

    Takes `step` units at a time off the group that kept the largest share of its own, until the target is reached.
    The seed decides only which units go, not how many; `recompute` changes nothing.

    Parameters, ``**options`` included, errors and result are those of `complexity_driven`.
    """
    return _method("uniform_width", model, example_input, _Options(mode, target, seed, **options), keep, batch_dim)


def random_draw(
    model: nn.Module,
    example_input: ExampleInput,
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
    **options: Any,
) -> nn.Module:
    """Return a network with widths drawn at random, all groups with the same probability.

    Like `complexity_driven`, without its weights; `recompute` changes nothing.

    Parameters, ``**options`` included, errors and result are those of `complexity_driven`.
    """
    return _method("random_draw", model, example_input, _Options(mode, target, seed, **options), keep, batch_dim)


def plan(
    model: nn.Module,
    groups: Groups,
    method: str = "complexity_driven",
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Return what one of the three methods would remove, draw by draw, without cutting anything.

    Parameters
    ----------
    model : nn.Module
        The network.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    method : {"complexity_driven", "uniform_width", "random_draw"}
        Which of them.
    mode, target, seed, **options
        As for `complexity_driven`.

    Returns
    -------
    Plan

    Raises
    ------
    CdlibError
        As `complexity_driven`.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return _plan(model, groups, method, _Options(mode, target, seed, **options))


@dataclass(frozen=True)
class _Options:
    mode: str
    target: float
    seed: int
    step: int = 1
    recompute: bool = True
    min_width: int = 1
    round_to: int = 1
    stop_at: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        if self.stop_at is not None and self.stop_at not in RESOURCES:
            raise unknown("resource in stop_at:", self.stop_at, RESOURCES)
        check_ratio(self.target, "target")
        for name, least in (("step", 1), ("min_width", 1), ("round_to", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise CdlibError(f"{name}={value!r}: give an integer of at least {least}.")

    @property
    def resource(self) -> str:
        """What the target is a share of."""
        return self.stop_at or MODES[self.mode]

    def next_width(self, width: int) -> int:
        """What a draw leaves of a width; 0 if it may not be drawn."""
        narrower = (width - self.step) // self.round_to * self.round_to
        return narrower if narrower >= max(self.min_width, 1) else 0


def _method(
    method: str,
    model: nn.Module,
    example_input: ExampleInput,
    options: _Options,
    keep: Iterable[str],
    batch_dim: int | None,
) -> nn.Module:
    groups = find_groups(model, example_input, keep=keep, batch_dim=batch_dim)
    drop = _plan(model, groups, method, options).drop
    return cut(model, example_input, groups.walk, slices_of(groups, drop), batch_dim)


def _plan(model: nn.Module, groups: Groups, method: str, options: _Options) -> Plan:
    if not groups.prunable:
        raise CdlibError(f"{groups!r}: there is nothing to remove. print(find_groups(...)) says why.")
    meter = Meter(model, groups)
    before = dict(meter.totals)
    most = before[options.resource] * (1 - options.target)
    _check_reach(model, groups, options, before[options.resource], most)
    rng = np.random.default_rng(options.seed)
    order = {name: rng.permutation(group.size) for name, group in meter.groups.items()}
    draws, trace = _DRAWS[method](meter, options, rng), []
    while meter.totals[options.resource] > most:
        name = next(draws)
        width = meter.kept[name]
        fewer = width - options.next_width(width)
        gone = meter.groups[name].size - width
        meter.drop(name, order[name][gone : gone + fewer])
        trace.append((name, fewer))
    return Plan(meter.dropped(), tuple(trace), before, dict(meter.totals))


def _check_reach(model: nn.Module, groups: Groups, options: _Options, total: int, most: float) -> None:
    """Raise unless the narrowest widths are small enough."""
    meter = Meter(model, groups)
    for name, width in list(meter.kept.items()):
        least = width
        while narrower := options.next_width(least):
            least = narrower
        meter.drop(name, range(least, width))
    if (left := meter.totals[options.resource]) > most:
        reached = math.floor(1000 * (1 - left / total)) / 1000
        raise CdlibError(
            f"target={options.target!r} cannot be reached: with all groups at their least width, {reached} of "
            f"{options.resource} is gone. Give at most that, or a smaller min_width, step or round_to."
        )


def _open(meter: Meter, options: _Options) -> list[str]:
    """The groups that can still be drawn."""
    return [name for name, width in meter.kept.items() if options.next_width(width)]


def _by_complexity(meter: Meter, options: _Options, rng: np.random.Generator) -> Iterator[str]:
    resource = MODES[options.mode]
    shares = meter.shares(resource)
    while True:
        if options.recompute:
            shares = meter.shares(resource)
        names = _open(meter, options)
        weights = np.array([shares[name] for name in names], dtype=float)
        even = np.full(len(names), 1 / len(names))
        yield names[rng.choice(len(names), p=weights / weights.sum() if weights.sum() else even)]


def _evenly(meter: Meter, options: _Options, rng: np.random.Generator) -> Iterator[str]:
    while True:
        names = _open(meter, options)
        yield max(names, key=lambda name: meter.kept[name] / meter.groups[name].size)


def _at_random(meter: Meter, options: _Options, rng: np.random.Generator) -> Iterator[str]:
    while True:
        names = _open(meter, options)
        yield names[rng.integers(len(names))]


_DRAWS: dict[str, Callable[[Meter, _Options, np.random.Generator], Iterator[str]]] = {
    "complexity_driven": _by_complexity,
    "uniform_width": _evenly,
    "random_draw": _at_random,
}
