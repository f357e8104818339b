"""New widths for a network before it is trained: complexity-driven pruning, and the controls that it must beat.

Zawish, Davy and Abraham 2022 (arXiv:2208.12816) draw layers at random, each with a probability that is its share of the
network's parameters (PA), FLOPs (FA) or memory (MA), and take filters off the drawn layer until enough is gone. No
filter is ranked; what is left is trained once. The paper's abstract leaves choices open, which are options here. A
draw here is of a group, so that whatever belongs to a filter goes with it.

`uniform_width` takes the same share off all groups, `random_draw` draws all groups with the same probability. What they
reach at the same cost is what the shares are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from cdlib.errors import CdlibError, check_choice, check_seed
from cdlib.grouping import Groups, check_groups
from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.pruning.targets import Draw, Draws, Goal, Plan

MODES = {"PA": "params", "FA": "macs", "MA": "activation_bytes"}
"""What the modes are aware of: the resource of `cdlib.profile` that a target counts, and that weighs the draws."""


def complexity_driven(
    model: nn.Module,
    groups: Groups,
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    step: int = 1,
    recompute: bool = True,
    min_width: int = 1,
    round_to: int = 1,
    stop_at: str | None = None,
) -> nn.Module:
    """Return a network with widths drawn by complexity: PA, FA or MA pruning (Zawish et al. 2022, arXiv:2208.12816).

    A group is drawn with a probability that is its share of the network's complexity, and loses `step` of its units,
    chosen at random; again until `target` is reached. What is left keeps its weights: to train it from scratch,
    as the paper does, build the network, prune it and train it.

    Parameters
    ----------
    model : nn.Module
        Any network; it is not touched.
    groups : Groups
        What `cdlib.find_groups` returned for it. FLOPs and memory are those of its example.
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

    Raises
    ------
    CdlibError
        If an option is out of range, nothing is prunable, or no widths reach the target (the error says what they
        reach); or as `cdlib.remove`.
    """
    limits = {"step": step, "min_width": min_width, "round_to": round_to}
    return _draws(model, groups, "by cost", mode, target, seed, recompute=recompute, stop_at=stop_at, **limits).cut()


def uniform_width(
    model: nn.Module, groups: Groups, mode: str = "PA", target: float = 0.5, seed: int = 0, **options: Any
) -> nn.Module:
    """Return a network in which all groups lost the same share of their units: the plain way to make it smaller.

    Takes `step` units at a time off the group that kept the largest share of its own, until the target is reached.
    The seed decides only which units go, not how many; `recompute` changes nothing.

    Parameters, options, errors and result are those of `complexity_driven`.
    """
    return _draws(model, groups, "evenly", mode, target, seed, **options).cut()


def random_draw(
    model: nn.Module, groups: Groups, mode: str = "PA", target: float = 0.5, seed: int = 0, **options: Any
) -> nn.Module:
    """Return a network with widths drawn at random, all groups with the same probability.

    Like `complexity_driven`, without its weights; `recompute` changes nothing.

    Parameters, options, errors and result are those of `complexity_driven`.
    """
    return _draws(model, groups, "at random", mode, target, seed, **options).cut()


def plan(
    model: nn.Module,
    groups: Groups,
    mode: str = "PA",
    target: float = 0.5,
    seed: int = 0,
    *,
    draw: str = "by cost",
    **options: Any,
) -> Plan:
    """Return the `Plan` of what `complexity_driven` or a control would remove, draw by draw, without cutting anything.

    A group is drawn "by cost" as in `complexity_driven`, "evenly" as in `uniform_width`, or "at random" as in
    `random_draw`. The other parameters, options and errors are those of `complexity_driven`.
    """
    return _draws(model, groups, draw, mode, target, seed, **options).plan()


def _draws(
    model: nn.Module,
    groups: Groups,
    draw: str,
    mode: str,
    target: float,
    seed: int,
    *,
    recompute: bool = True,
    stop_at: str | None = None,
    **limits: int,
) -> Draws:
    """What draws the groups; of the limits those that are left out are 1."""
    check_groups(groups, model)
    check_choice("draw", draw, DRAWS)
    check_choice("mode", mode, MODES)
    if stop_at is not None:
        check_choice("resource in stop_at:", stop_at, RESOURCES)
    check_seed(seed)
    if not isinstance(recompute, bool):
        raise CdlibError(f"recompute={recompute!r}: give True or False.")
    rng = np.random.default_rng(seed)
    order = {group.name: rng.permutation(group.size).tolist() for group in groups.prunable}
    goal = Goal(target, stop_at or MODES[mode], **limits)
    return Draws(model, groups, order, DRAWS[draw](rng, MODES[mode], recompute), goal)


def by_cost(rng: np.random.Generator, resource: str, recompute: bool) -> Draw:
    """Draw with the shares of a resource as probabilities."""
    shares: dict[str, float] = {}

    def draw(meter: Meter, names: list[str]) -> str:
        if recompute or not shares:
            shares.update(meter.shares(resource))
        weights = np.array([shares[name] for name in names], dtype=float)
        even = np.full(len(names), 1 / len(names))
        return names[rng.choice(len(names), p=weights / weights.sum() if weights.sum() else even)]

    return draw


def evenly(meter: Meter, names: list[str]) -> str:
    """Draw the group that kept the largest share of its units."""
    return max(names, key=lambda name: meter.kept[name] / meter.groups[name].size)


DRAWS: dict[str, Callable[[np.random.Generator, str, bool], Draw]] = {
    "by cost": by_cost,
    "evenly": lambda rng, resource, recompute: evenly,
    "at random": lambda rng, resource, recompute: lambda meter, names: names[rng.integers(len(names))],
}
"""The ways to draw one of the groups that may be drawn: made of random numbers, a resource and `recompute`."""
