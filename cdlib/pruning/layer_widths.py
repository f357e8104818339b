"""New widths for a network before it is trained: complexity-driven pruning, and the controls that it must beat.

Zawish, Davy and Abraham 2022 (arXiv:2208.12816) draw layers at random, each with a probability that is its share of the
network's parameters (PA), FLOPs (FA) or memory (MA), and take filters off the drawn layer until enough is gone. No
filter is ranked; what is left is trained once. The paper's abstract leaves choices open, which are options here. A
draw here is of a group, so that whatever belongs to a filter goes with it.

`uniform_width` takes the same share off all groups, `random_draw` draws all groups with the same probability. What they
reach at the same cost is what the shares are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from cdlib.errors import CdlibError, check_choice, check_seed
from cdlib.graph.tracing import ExampleInput
from cdlib.grouping import Groups, find_groups
from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.pruning.targets import Limits, Plan, cut_to, take

MODES = {"PA": "params", "FA": "macs", "MA": "activation_bytes"}
"""What the modes are aware of: the resource of `cdlib.profile` that a target counts, and that weighs the draws."""


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
        Units that every group keeps. A group that would go below is not drawn. A LayerNorm over the channels of a
        group of one unit returns its bias, whatever comes in: give more where channels are normalised so.
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
    what = _Draws("complexity_driven", mode, target, seed, Limits(step, min_width, round_to), stop_at, recompute)
    return _smaller(what, model, example_input, keep, batch_dim)


def uniform_width(
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
    """Return a network in which all groups lost the same share of their units: the plain way to make it smaller.

    Takes `step` units at a time off the group that kept the largest share of its own, until the target is reached.
    The seed decides only which units go, not how many; `recompute` changes nothing.

    Parameters, errors and result are those of `complexity_driven`.
    """
    what = _Draws("uniform_width", mode, target, seed, Limits(step, min_width, round_to), stop_at, recompute)
    return _smaller(what, model, example_input, keep, batch_dim)


def random_draw(
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
    """Return a network with widths drawn at random, all groups with the same probability.

    Like `complexity_driven`, without its weights; `recompute` changes nothing.

    Parameters, errors and result are those of `complexity_driven`.
    """
    what = _Draws("random_draw", mode, target, seed, Limits(step, min_width, round_to), stop_at, recompute)
    return _smaller(what, model, example_input, keep, batch_dim)


def plan(
    model: nn.Module,
    groups: Groups,
    method: str = "complexity_driven",
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    step: int = 1,
    recompute: bool = True,
    min_width: int = 1,
    round_to: int = 1,
    stop_at: str | None = None,
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
    mode, target, seed, step, recompute, min_width, round_to, stop_at
        As for `complexity_driven`.

    Returns
    -------
    Plan

    Raises
    ------
    CdlibError
        As `complexity_driven`.
    """
    return _Draws(method, mode, target, seed, Limits(step, min_width, round_to), stop_at, recompute)(model, groups)


@dataclass(frozen=True)
class _Draws:
    """Which draws are made, and until when."""

    method: str
    mode: str
    target: float
    seed: int
    limits: Limits
    stop_at: str | None
    recompute: bool

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("mode", self.mode, MODES)
        if self.stop_at is not None:
            check_choice("resource in stop_at:", self.stop_at, RESOURCES)
        check_seed(self.seed)
        if not isinstance(self.recompute, bool):
            raise CdlibError(f"recompute={self.recompute!r}: give True or False.")

    @property
    def resource(self) -> str:
        return self.stop_at or MODES[self.mode]

    def __call__(self, model: nn.Module, groups: Groups, spare: int = 0) -> Plan:
        rng = np.random.default_rng(self.seed)
        order = {group.name: rng.permutation(group.size).tolist() for group in groups.prunable}
        draw = METHODS[self.method](rng, MODES[self.mode], self.recompute)
        return take(model, groups, order, draw, self.target, self.resource, self.limits, spare=spare)


def _smaller(
    draws: _Draws, model: nn.Module, example_input: ExampleInput, keep: Iterable[str], batch_dim: int | None
) -> nn.Module:
    groups = find_groups(model, example_input, keep=keep, batch_dim=batch_dim)
    planned = partial(draws, model, groups)
    return cut_to(draws.target, planned, model, example_input, groups, draws.resource, batch_dim)


class _ByComplexity:
    """Draw with the shares of a resource as probabilities."""

    def __init__(self, rng: np.random.Generator, resource: str, recompute: bool) -> None:
        self.rng, self.resource, self.recompute = rng, resource, recompute
        self.shares: dict[str, float] = {}

    def __call__(self, meter: Meter, names: list[str]) -> str:
        if self.recompute or not self.shares:
            self.shares = meter.shares(self.resource)
        weights = np.array([self.shares[name] for name in names], dtype=float)
        even = np.full(len(names), 1 / len(names))
        return names[self.rng.choice(len(names), p=weights / weights.sum() if weights.sum() else even)]


def evenly(meter: Meter, names: list[str]) -> str:
    """Draw the group that kept the largest share of its units."""
    return max(names, key=lambda name: meter.kept[name] / meter.groups[name].size)


METHODS: dict[str, Callable[[np.random.Generator, str, bool], Callable[[Meter, list[str]], str]]] = {
    "complexity_driven": _ByComplexity,
    "uniform_width": lambda rng, resource, recompute: evenly,
    "random_draw": lambda rng, resource, recompute: lambda meter, names: names[rng.integers(len(names))],
}
"""The methods: what draws one of the groups that may be drawn, from random numbers, a resource and `recompute`."""
