"""Taking units off groups, a draw at a time, until a resource has fallen far enough: what all width methods share.

A method says which group is drawn next and in which order a group's units go. Here is the rest: limits, the target,
counting what is left, and cutting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from cdlib.capture import ExampleInput
from cdlib.errors import CdlibError, check_choice
from cdlib.pruning.groups import Groups
from cdlib.pruning.meter import RESOURCES, Meter
from cdlib.pruning.saliency import check_ratio
from cdlib.pruning.subnet import cut, slices_of

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
    """How far widths go down in a draw, and in all: see `cdlib.pruning.widths.complexity_driven`.

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

    Returns
    -------
    Plan

    Raises
    ------
    CdlibError
        If the target or the resource is none, nothing is prunable, or no widths reach the target.
    """
    check_ratio(target, "target")
    if not groups.prunable:
        raise CdlibError(f"{groups!r}: there is nothing to remove. print(find_groups(...)) says why.")
    meter = Meter(model, groups)
    before = dict(meter.totals)
    if total is None:
        total = amount(meter, resource)
        check_reach(Meter(model, groups), limits, resource, target)
    most = total * (1 - target)
    trace = []
    while amount(meter, resource) > most:
        name = draw(meter, [name for name, width in meter.kept.items() if limits.next_width(width)])
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


def check_reach(meter: Meter, limits: Limits, resource: str, target: float) -> None:
    """Raise a CdlibError unless the narrowest widths are small enough; the meter is used up."""
    total = amount(meter, resource)
    for name, width in list(meter.kept.items()):
        least = width
        while narrower := limits.next_width(least):
            least = narrower
        meter.drop(name, range(least, width))
    if (left := amount(meter, resource)) > total * (1 - target):
        reached = math.floor(1000 * (1 - left / total)) / 1000
        raise CdlibError(
            f"target={target!r} cannot be reached: with all groups at their least width, {reached} of "
            f"{resource} is gone. Give at most that, or a smaller min_width, step or round_to."
        )


def cut_by(
    done: Plan, model: nn.Module, example_input: ExampleInput, groups: Groups, batch_dim: int | None
) -> nn.Module:
    """Return a copy of the network without what a plan drops; raises as `cdlib.remove`."""
    return cut(model, example_input, groups.walk, slices_of(groups, done.drop), batch_dim)


def check_whole(name: str, value: object, least: int) -> None:
    """Raise a CdlibError unless a value is an integer from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CdlibError(f"{name}={value!r}: give an integer of at least {least}.")
