"""An optimizer that trains and prunes at once: what HESSO and DHSPG have in common.

It lets a base optimizer do its step, and then moves the redundant units on. Which units are redundant and how they are
moved is left to the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cdlib.errors import CdlibError, check_share, check_whole
from cdlib.pruning.oto.units import Units

TINY = 1e-8


class GroupSparse(Optimizer):
    """A base optimizer with a phase, `start` to `ends`, in which units become zero; made by `hesso` or `dhspg`.

    Attributes
    ----------
    base : torch.optim.Optimizer
        What moves the weights; its `param_groups` and `state` are this one's.
    step_count : int
        Steps done.
    ends : int
        The step after which the target is met.
    redundant, zero : Tensor, bool [units]
        The units that have been chosen, and those of them that are zero for good.
    """

    def __init__(
        self, units: Units, base: Optimizer, target: float, start: int, steps: int, periods: int, min_width: int
    ) -> None:
        if isinstance(base, GroupSparse):
            raise CdlibError(f"base={type(base).__name__} prunes already: give the optimizer below it.")
        check_share("target", target)
        given = {"start": start, "steps": steps, "periods": periods, "min_width": min_width}
        for name, value in given.items():
            check_whole(name, value, int(name != "start"))
        if periods > steps:
            raise CdlibError(f"periods={periods} is more than steps={steps}: give each period at least one step.")
        self.units, self.base, self.min_width = units, base, min_width
        self.wanted = math.floor(target * units.count + 1e-9)
        most = sum(max(0, size - min_width) for size in units.sizes.values())
        if self.wanted > most:
            share = math.floor(1000 * most / units.count) / 1000
            raise CdlibError(
                f"target={target!r} is {self.wanted} of {units.count} units, but each of the {len(units.sizes)} groups "
                f"keeps {min_width}: give at most {share}, or a smaller min_width."
            )
        super().__init__(base.param_groups, base.defaults)
        self.param_groups, self.state = base.param_groups, base.state
        self.start, self.period, self.periods = start, steps // periods, periods
        self.ends = start + self.period * periods
        self.step_count = 0
        self.redundant = torch.zeros_like(units.group, dtype=torch.bool)
        self.zero = self.redundant.clone()
        self._settle()

    @property
    def sparsity(self) -> float:
        """The share of units that are zero for good."""
        return int(self.zero.sum()) / self.units.count

    def drop(self) -> dict[str, list[int]]:
        """Return the units that are zero for good, by group: for `cdlib.remove`.

        A CdlibError if they are not zero: gradients were no finite numbers, or weights were changed by something else.
        """
        if wrong := self.units.named(self.zero & (self.units.lengths() != 0)):
            raise CdlibError(
                f"units of {', '.join(wrong)} are not zero any more: the loss was no finite number, or something else "
                "than this optimizer changed them. Lower the learning rate, or load the weights of this state."
            )
        return self.units.named(self.zero)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let the base do a step, then move the redundant units; returns what the closure does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        t = self.step_count - self.start
        choosing = 0 <= t < self.ends - self.start and t % self.period == 0
        slices = self.units.all if choosing else self._active
        before = slices.values(reuse=not choosing) if choosing or self._looks_back else []
        self.base.step()
        if choosing:
            norms = slices.norms(slices.products(before), slices.rates())
            self.redundant |= self._redundant(t // self.period, *norms)
            self._settle()
            before = [before[part.number] for part in self._active.parts]
        if self._active.parts:
            self._move(t % self.period, before)
            if (t + 1) % self.period == 0:
                self.zero |= self.redundant
                self._settle()
        self._fixed.scale(~self.zero)
        self.step_count += 1
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not possible: the units were found when the optimizer was made."""
        if hasattr(self, "redundant"):
            raise CdlibError(f"{type(self).__name__} takes no further parameters: add them to the base before.")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state of the base and of the units; tensors are not copied."""
        counts = {name: getattr(self, name) for name in self._counts}
        own = {**self._identity(), **counts, "redundant": self.redundant, "zero": self.zero}
        return {**self.base.state_dict(), "group_sparse": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, bit for bit; a CdlibError if it is of another kind of optimizer, network or options."""
        rest = dict(state_dict) if isinstance(state_dict, Mapping) else {}
        own = rest.pop("group_sparse", None)
        state = own if isinstance(own, dict) else {}
        for what, value in self._identity().items():
            if state.get(what) != value:
                theirs, mine = (shorten(str(v), 150, placeholder=" ...") for v in (state.get(what), value))
                raise CdlibError(
                    f"this state is not of this {type(self).__name__}: {what} of it: {theirs}, of this: {mine}; "
                    "make the optimizer as it was made, for the same network, or train from the start."
                )
        try:
            marks = torch.stack([state[name] for name in ("redundant", "zero")])
            marks = marks.to(self.zero).view(2, *self.zero.shape)
            counts = {name: int(state[name]) for name in self._counts}
            self.base.load_state_dict(rest)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CdlibError(
                f"this state of {type(self).__name__} is damaged ({error}): take another, or train from the start."
            ) from error
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.units.regroup(self.base)
        for name, count in counts.items():
            setattr(self, name, count)
        self.redundant.copy_(marks[0])
        self.zero.copy_(marks[1])
        self._settle()

    def __getstate__(self) -> dict[str, Any]:
        """All there is, but what schedulers put over `step`: for copies together with the network."""
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    _looks_back = False
    """Whether moving needs the values from before the base's step."""

    _options: tuple[str, ...] = ("wanted", "start", "period", "periods", "min_width")
    """The numbers that a state must agree in."""

    _counts: tuple[str, ...] = ("step_count",)
    """The numbers that belong to the state."""

    def _identity(self) -> dict[str, Any]:
        """What a state must agree in."""
        options = {"kind": type(self).__name__, **{name: getattr(self, name) for name in self._options}}
        shapes = [[list(p.shape) for p in group["params"]] for group in self.param_groups]
        return {"units": dict(self.units.sizes), "options": options, "base": type(self.base).__name__, "shapes": shapes}

    def _settle(self) -> None:
        """Sort the units' slices by what is done with them."""
        self._active = self.units.of(self.redundant & ~self.zero)
        self._fixed = self.units.of(self.zero)

    def _lowest(self, scores: Tensor, count: int) -> Tensor:
        """The `count` units with the lowest scores that are not redundant, but the last of no group: bool [units]."""
        if not bool(scores.isfinite().all()):
            raise CdlibError(
                f"in step {self.step_count + 1} weights or their moves are no finite numbers, so no units can be "
                "chosen: lower the learning rate."
            )
        free = scores.masked_fill(self.redundant, -math.inf)
        order = torch.sort(free, descending=True, stable=True).indices
        order = order[torch.sort(self.units.group[order], stable=True).indices]  # each group from its best downwards
        sizes = torch.tensor(list(self.units.sizes.values()), device=order.device)
        place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        closed = self.redundant.clone()
        closed[order[place < self.min_width]] = True
        chosen = torch.zeros_like(closed)
        chosen[torch.sort(scores.masked_fill(closed, math.inf), stable=True).indices[:count]] = True
        return chosen

    def _redundant(self, period: int, x: Tensor, d: Tensor, xd: Tensor) -> Tensor:
        """The units that become redundant, from |x|, |d| and <x, d> of all units: bool [units]."""
        raise NotImplementedError

    def _move(self, t: int, before: list[Tensor]) -> None:
        """Move the active parts, in step t of the period."""
        raise NotImplementedError
