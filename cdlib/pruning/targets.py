"""Taking units off groups, a draw at a time, until a resource has fallen far enough: what all width methods share.

A method says which group is drawn next and in which order a group's units go. Here is the rest: limits, the target,
counting what is left, and cutting.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cdlib.complexity import profile
from cdlib.errors import CdlibError, check_choice, check_share, check_whole
from cdlib.grouping import Groups
from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.surgery import cut, rewritten, slices_of

UNITS = "units"
"""Counted beside the `RESOURCES` of the meter: the units of all prunable groups."""

Order = dict[str, list[int]]
"""The units of every prunable group, the first to go first."""

Draw = Callable[[Meter, list[str]], str]
"""Gets the meter and the names of the groups that may be drawn, and returns one of them."""


@dataclass(frozen=True)
class Plan:
    """What was drawn."""

    drop: dict[str, list[int]]  #: The units to remove, by group, for `cdlib.remove`.
    trace: tuple[tuple[str, int], ...]  #: Of every draw in order the group, and how many units it lost.
    before: dict[str, int]  #: ``params``, ``macs`` and ``activation_bytes`` of the network.
    after: dict[str, int]  #: The same of what is left.


@dataclass(frozen=True)
class Goal:
    """How much of what is to go, and how far widths go down in a draw, and in all; a CdlibError if it makes no sense.

    `step`, `min_width` and `round_to` are those of `cdlib.pruning.complexity_driven`.
    """

    target: float  # the share of the full network's `resource` to remove, from 0 to below 1
    resource: str  # what is counted: one of the meter's `RESOURCES`, or "units"
    step: int = 1
    min_width: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        check_share("target", self.target)
        check_choice("resource", self.resource, (*RESOURCES, UNITS))
        for name in ("step", "min_width", "round_to"):
            check_whole(name, getattr(self, name), 1)

    def next_width(self, width: int) -> int:
        """What a draw leaves of a width; 0 if it may not be drawn."""
        narrower = (width - self.step) // self.round_to * self.round_to
        return narrower if narrower >= self.min_width else 0


class Draws:
    """Units taken off the groups of a network until a goal is reached; the network is only counted.

    `total` is what the target is a share of, by default what the network has of the resource. A CdlibError if no group
    is prunable, or they are of another network.
    """

    def __init__(
        self, model: nn.Module, groups: Groups, order: Order, draw: Draw, goal: Goal, total: int | None = None
    ) -> None:
        if not groups.prunable:
            raise CdlibError(f"{groups!r}: there is nothing to remove. print(find_groups(...)) says why.")
        self._model, self._groups, self._order, self._draw, self._goal = model, groups, order, draw, goal
        self._meter = Meter(model, groups)
        self.total = self._left() if total is None else total
        self._most = self.total * (1 - goal.target)
        self._trace: list[tuple[str, int]] = []

    def plan(self) -> Plan:
        """Draw until the goal is reached, as `cdlib.pruning.Meter` counts; a CdlibError if no widths reach it."""
        before = dict(self._meter.totals)
        if not self._reach():
            raise self._out_of_reach(self._left())
        return Plan(self._meter.dropped(), tuple(self._trace), before, dict(self._meter.totals))

    def cut(self) -> nn.Module:
        """Return a copy of the network without what the fewest draws that reach the goal take off.

        Where a cut rewrites a module (attention), the new one keeps other activations than the meter counts, and only
        the cut network tells how many. A CdlibError if no widths reach the goal; or as `cdlib.remove`.
        """
        reached, draws = self._reach(), len(self._trace)
        if reached:
            draft = self._goal.resource == "activation_bytes"
            small = self._cut(draws, draft=draft)
            if self._left_in(small) <= self._most:
                return self._cut(draws, draft=False) if draft and rewritten(small) else small
        self.check()
        rest = range(draws, len(self._trace))
        draws += bisect_left(rest, True, key=lambda n: self._left_in(self._cut(n, draft=True)) <= self._most)
        return self._cut(draws, draft=False)

    def check(self) -> None:
        """Raise a CdlibError unless the least widths reach the goal; draws all that can be drawn."""
        while self._once():
            pass
        left = self._left()
        if self._goal.resource == "activation_bytes":
            left = self._left_in(self._cut(len(self._trace), draft=True))
        if left > self._most:
            raise self._out_of_reach(left)

    def _reach(self) -> bool:
        """Draw until the goal is reached, as the meter counts; False if it is not."""
        while self._left() > self._most:
            if not self._once():
                return False
        return True

    def _once(self) -> bool:
        """Draw a group that may be drawn; False if there is none."""
        widths = self._meter.kept
        names = [name for name, width in widths.items() if self._goal.next_width(width)]
        if names:
            name = self._draw(self._meter, names)
            gone, fewer = self._groups[name].size - widths[name], widths[name] - self._goal.next_width(widths[name])
            self._meter.drop(name, self._order[name][gone : gone + fewer])
            self._trace.append((name, fewer))
        return bool(names)

    def _cut(self, draws: int, *, draft: bool) -> nn.Module:
        """The network without what the first draws took off."""
        gone = Counter[str]()
        for name, fewer in self._trace[:draws]:
            gone[name] += fewer
        drop = {name: self._order[name][:n] for name, n in gone.items()}
        return cut(self._model, self._groups, slices_of(self._groups, drop), draft=draft)

    def _left(self) -> int:
        kept = self._meter.kept
        return sum(kept.values()) if self._goal.resource == UNITS else self._meter.totals[self._goal.resource]

    def _left_in(self, small: nn.Module) -> int:
        """What is left in a network that was cut now."""
        if self._goal.resource != "activation_bytes" or not rewritten(small):
            return self._left()
        inputs = self._groups.inputs_for(small)
        return profile(small, inputs.args, kwargs=inputs.kwargs, batch_dim=inputs.batch_dim).activation_bytes

    def _out_of_reach(self, left: int) -> CdlibError:
        """What to raise when all groups are at their least width."""
        reached = math.floor(1000 * (1 - left / self.total)) / 1000
        return CdlibError(
            f"target={self._goal.target!r} cannot be reached: with all groups at their least width, "
            f"{reached} of {self._goal.resource} is gone. Give at most that, or a smaller min_width, step or round_to."
        )
