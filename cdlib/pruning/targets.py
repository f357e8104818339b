"""Taking units off groups, a draw at a time, until a resource has fallen far enough: what all width methods share.

A method says which group is drawn next and in which order a group's units go. Here is the rest: limits, the target,
counting what is left, and cutting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cdlib.complexity import profile
from cdlib.errors import CdlibError, check_choice, check_share, check_whole
from cdlib.graph.tracing import ExampleInput
from cdlib.grouping import Groups
from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.surgery.removal import cut, rewritten, slices_of

UNITS = "units"
"""Counted beside the `RESOURCES` of the meter: the units of all prunable groups."""


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


@dataclass(frozen=True)
class Limits:
    """How far widths go down in a draw, and in all: see `cdlib.pruning.complexity_driven`.

    Raises
    ------
    CdlibError
        If a value is no integer of at least 1.
    """

    step: int = 1
    min_width: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        for name in ("step", "min_width", "round_to"):
            check_whole(name, getattr(self, name), 1)

    def next_width(self, width: int) -> int:
        """What a draw leaves of a width; 0 if it may not be drawn."""
        narrower = (width - self.step) // self.round_to * self.round_to
        return narrower if narrower >= self.min_width else 0


def take(
    model: nn.Module,
    groups: Groups,
    order: Mapping[str, Sequence[int]],
    draw: Callable[[Meter, list[str]], str],
    target: float,
    resource: str,
    limits: Limits,
    *,
    total: int | None = None,
    spare: int = 0,
) -> Plan:
    """Draw groups and take units off them until the target is reached.

    Parameters
    ----------
    model : nn.Module
        The network; it is only counted.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    order : mapping from str to sequence of int
        For every prunable group its units, the first to go first.
    draw : callable
        Gets the meter and the names of the groups that may be drawn, and returns one of them.
    target : float
        The share of `total` to remove, from 0 to below 1.
    resource : str
        What is counted: one of the meter's `RESOURCES`, or "units".
    limits : Limits
        Of the widths.
    total : int, optional
        By default what the network has of the resource, and then it is checked first that widths can reach the target.
    spare : int, default 0
        What is counted on top of what is left: see `cut_to`.

    Returns
    -------
    Plan

    Raises
    ------
    CdlibError
        If the target or the resource is none, nothing is prunable, or no widths reach the target.
    """
    check_share("target", target)
    if not groups.prunable:
        raise CdlibError(f"{groups!r}: there is nothing to remove. print(find_groups(...)) says why.")
    meter = Meter(model, groups)
    before = dict(meter.totals)
    if total is None:
        total = amount(meter, resource)
        check_reach(Meter(model, groups), limits, resource, target, spare)
    most = total * (1 - target)
    trace = []
    while (left := amount(meter, resource) + spare) > most:
        names = [name for name, width in meter.kept.items() if limits.next_width(width)]
        if not names:
            raise _out_of_reach(target, resource, 1 - left / total)
        name = draw(meter, names)
        width = meter.kept[name]
        fewer = width - limits.next_width(width)
        gone = meter.groups[name].size - width
        meter.drop(name, order[name][gone : gone + fewer])
        trace.append((name, fewer))
    return Plan(meter.dropped(), tuple(trace), before, dict(meter.totals))


def amount(meter: Meter, resource: str) -> int:
    """What is left of a resource, or of the units; raises a CdlibError if there is no such resource."""
    check_choice("resource", resource, (*RESOURCES, UNITS))
    return sum(meter.kept.values()) if resource == UNITS else meter.totals[resource]


def check_reach(meter: Meter, limits: Limits, resource: str, target: float, spare: int = 0) -> None:
    """Raise a CdlibError unless the narrowest widths are small enough; the meter is used up."""
    total = amount(meter, resource)
    for name, width in list(meter.kept.items()):
        least = width
        while narrower := limits.next_width(least):
            least = narrower
        meter.drop(name, range(least, width))
    if (left := amount(meter, resource) + spare) > total * (1 - target):
        raise _out_of_reach(target, resource, 1 - left / total)


def _out_of_reach(target: float, resource: str, reached: float) -> CdlibError:
    """What to raise when all groups are at their least width, and a target is missed."""
    return CdlibError(
        f"target={target!r} cannot be reached: with all groups at their least width, "
        f"{math.floor(1000 * reached) / 1000} of {resource} is gone. Give at most that, or a smaller min_width, step "
        "or round_to."
    )


def cut_to(
    target: float,
    planned: Callable[..., Plan],
    model: nn.Module,
    example_input: ExampleInput,
    groups: Groups,
    resource: str,
    batch_dim: int | None,
    total: int | None = None,
) -> nn.Module:
    """Return a copy of the network without what a plan drops.

    Where a cut rewrites a module (attention), the new one keeps other activations, and only the cut network tells how
    many. So it is counted, and if the target is missed, the least number of draws that reaches it is searched for.

    Parameters
    ----------
    target : float
        The share of `total` to remove.
    planned : callable
        Gets what to `spare`, by that name, and returns a plan of `take`.
    model, example_input, groups, batch_dim
        As for `cdlib.remove`.
    resource : str
        What is counted.
    total : int, optional
        By default what the network has of the resource.

    Returns
    -------
    nn.Module

    Raises
    ------
    CdlibError
        As `take` or `cdlib.remove`.
    """

    def attempt(spare: int) -> tuple[nn.Module, int, int]:
        """The network, by how many draws, and how many bytes it has too many."""
        done = planned(spare=spare)
        small = cut(model, example_input, groups.walk, slices_of(groups, done.drop), batch_dim)
        if resource != "activation_bytes" or not rewritten(small):
            return small, len(done.trace), 0
        most = (total or done.before[resource]) * (1 - target)
        return small, len(done.trace), max(0, math.ceil(profile(small, example_input).activation_bytes - most))

    high, low = 0, (0, 0)
    small, draws, missing = attempt(high)
    while missing:
        low = high, draws
        high += missing
        small, draws, missing = attempt(high)
    while high - low[0] > 1 and draws - low[1] > 1:
        between = (low[0] + high) // 2
        other, its_draws, missing = attempt(between)
        if missing:
            low = between, its_draws
        else:
            small, high, draws = other, between, its_draws
    return small
