"""Training and pruning at once: optimizers that drive whole units to zero while they train the others.

`hesso` and `dhspg` make a `torch.optim.Optimizer` out of any other one. The base moves all weights; then the redundant
units are moved on towards zero, where they stay. Since only zero-invariant groups take part, `cdlib.remove` of the
units that `drop` names gives a smaller network that computes what the trained one does ("only train once").

DHSPG is the optimizer of OTOv2 (Chen et al. 2023, arXiv:2303.06862), HESSO that of OTOv3 and its successor (Chen et al.
2023, arXiv:2312.09411; 2024, arXiv:2409.09085). Where these papers write the gradient, their implementation takes the
direction of the base (with momentum, or Adam's); so does this one: d = (x - x') / lr for a base step from x to x'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.capture import ExampleInput
from cdlib.errors import CdlibError
from cdlib.pruning.groups import find_groups
from cdlib.pruning.planning import check_whole
from cdlib.pruning.saliency import check_ratio
from cdlib.pruning.segments import Part, Units

_TINY = 1e-8


def hesso(
    model: nn.Module,
    example_input: ExampleInput,
    base: torch.optim.Optimizer,
    target: float = 0.5,
    *,
    start: int = 0,
    steps: int,
    periods: int = 1,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
) -> HESSO:
    """Return an optimizer that shrinks the least important units to zero, period by period, while it trains.

    After `start` steps, `steps` steps are divided into `periods` of T = steps // periods. At the start of each, the
    units with the lowest saliency become redundant; in step t = 0, 1, ... of it they are multiplied by
    (T - t - 1) / (T - t) after the base has moved them, and so are zero at its end.

    Parameters
    ----------
    model : nn.Module
        The network that `base` trains, on the device where it is trained.
    example_input : tensor or tuple
        What it is called with.
    base : torch.optim.Optimizer
        Any, for example SGD, Adam or AdamW. Its parameter groups are shared: set learning rates as usual.
    target : float, default 0.5
        The group sparsity: floor(target * n) of the n units of all zero-invariant groups become zero. Each group
        keeps the most important of its units.
    start : int, default 0
        Steps before, in which the base alone trains (warm-up).
    steps : int
        Steps from then until the target is met.
    periods : int, default 1
        In how many parts the redundant units are chosen.
    keep : iterable of str, optional
        Modules or parameters, by name, of which nothing may be removed.
    batch_dim : int or None, default 0
        The dimension of the input that counts samples.

    Returns
    -------
    HESSO

    Raises
    ------
    CdlibError
        If an option is out of range, nothing could be removed, or the target leaves no unit in a group.
    """
    groups = find_groups(model, example_input, keep=keep, batch_dim=batch_dim)
    return HESSO(Units(model, groups, base), base, target, start, steps, periods)


def dhspg(
    model: nn.Module,
    example_input: ExampleInput,
    base: torch.optim.Optimizer,
    target: float = 0.5,
    *,
    start: int = 0,
    steps: int,
    penalty: float | None = None,
    amplify: float | None = None,
    coefficient: float | None = None,
    epsilon: float = 0.0,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
) -> DHSPG:
    """Return an optimizer that pulls redundant units towards zero and projects them onto it (half-space steps).

    After `start` steps, the floor(target * n) units with the highest redundancy are chosen once. From then on each step
    moves them by a further -lr * lambda * x / |x|. One that leaves the half-space of its old self, <x^, x> < epsilon
    |x|^2, becomes zero. Those that are not zero after `steps` steps are set to zero then; `forced` says how many.

    Parameters
    ----------
    model, example_input, base, target, start, steps, keep, batch_dim
        As for `hesso`.
    penalty : float, optional
        Lambda; by default 1e-3, and 1e-2 over Adam and AdamW.
    amplify, coefficient : float, optional
        For a unit that the base moves away from zero, <x, d> < 0, lambda is `amplify` times the least value that turns
        it round, -<x, d> / |x|, but from lambda to `coefficient` times lambda; and where that would no longer
        be a direction of descent, lambda >= -|d|^2 |x| / <x, d>, the mean of both bounds. By default 2 and 10, over
        Adam and AdamW 20 and 1000.
    epsilon : float, default 0
        From 0 to below 1: larger values project sooner.

    Returns
    -------
    DHSPG

    Raises
    ------
    CdlibError
        As `hesso`.
    """
    adam = isinstance(base, torch.optim.Adam | torch.optim.AdamW | torch.optim.NAdam | torch.optim.RAdam)
    given = {"penalty": penalty, "amplify": amplify, "coefficient": coefficient}
    defaults = (1e-2, 20.0, 1e3) if adam else (1e-3, 2.0, 10.0)
    rule = {k: v if v is not None else default for (k, v), default in zip(given.items(), defaults, strict=True)}
    for name, value in rule.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CdlibError(f"{name}={value!r}: give a positive number.")
    check_ratio(epsilon, "epsilon")
    groups = find_groups(model, example_input, keep=keep, batch_dim=batch_dim)
    return DHSPG(Units(model, groups, base), base, target, start, steps, epsilon=epsilon, **rule)


class GroupSparse(torch.optim.Optimizer):
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
        self, units: Units, base: torch.optim.Optimizer, target: float, start: int, steps: int, periods: int
    ) -> None:
        check_ratio(target, "target")
        for name, value, least in (("start", start, 0), ("steps", steps, 1), ("periods", periods, 1)):
            check_whole(name, value, least)
        if periods > steps:
            raise CdlibError(f"periods={periods} is more than steps={steps}: give each period at least one step.")
        self.units, self.base = units, base
        self.wanted = math.floor(target * units.count + 1e-9)
        most = units.count - len(units.sizes)
        if self.wanted > most:
            share = math.floor(1000 * most / units.count) / 1000
            raise CdlibError(
                f"target={target!r} is {self.wanted} of {units.count} units, but each of the {len(units.sizes)} groups "
                f"keeps one: give at most {share}."
            )
        super().__init__(base.param_groups, base.defaults)
        self.param_groups, self.state = base.param_groups, base.state
        self.start, self.period, self.periods = start, steps // periods, periods
        self.ends = start + self.period * periods
        self.step_count = 0
        self.redundant = torch.zeros_like(units.group, dtype=torch.bool)
        self.zero = self.redundant.clone()
        self._active: list[Part] = []
        self._fixed: list[Part] = []

    @property
    def sparsity(self) -> float:
        """The share of units that are zero for good."""
        return int(self.zero.sum()) / self.units.count

    def drop(self) -> dict[str, list[int]]:
        """Return the units that are zero for good, by group: for `cdlib.remove`."""
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
        parts = self.units.parts if choosing else self._active
        before = [part.read() for part in parts] if choosing or self._looks_back else []
        self.base.step()
        if choosing:
            directions = [
                (x - part.read()).div_(part.lr) if part.lr else torch.zeros_like(x)
                for part, x in zip(parts, before, strict=True)
            ]
            chosen = self._choose(t // self.period, before, directions)
            self.redundant |= chosen
            before = [x[chosen[part.unit]] for part, x in zip(parts, before, strict=True) if chosen[part.unit].any()]
            self._active = self.units.of(chosen)
        if self._active:
            self._move(t % self.period, before)
            if (t + 1) % self.period == 0:
                self.zero |= self.redundant
                self._settle()
        for part in self._fixed:
            part.scale(0)
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
        own = {
            "units": dict(self.units.sizes),
            "options": self._options(),
            "step_count": self.step_count,
            "redundant": self.redundant,
            "zero": self.zero,
        }
        return {**self.base.state_dict(), "group_sparse": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, bit for bit.

        Raises
        ------
        CdlibError
            If it is of another kind of optimizer, network or options.
        """
        rest = dict(state_dict)
        own = rest.pop("group_sparse", None)
        mine = {"units": self.units.sizes, "options": self._options()}
        for what, value in mine.items():
            if own is None or own[what] != value:
                found = "none" if own is None else own[what]
                raise CdlibError(
                    f"this state is not of this {type(self).__name__}: its {what} are {found}, not {value}; "
                    "make the optimizer as it was made, for the same network, or train from the start."
                )
        self.base.load_state_dict(rest)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.units.regroup(self.base)
        self.step_count = own["step_count"]
        for name in ("redundant", "zero"):
            getattr(self, name).copy_(own[name])
        self._settle()

    _looks_back = False
    """Whether moving needs the values from before the base's step."""

    def _options(self) -> dict[str, float | str]:
        return {
            "kind": type(self).__name__,
            "wanted": self.wanted,
            "start": self.start,
            "period": self.period,
            "periods": self.periods,
        }

    def _settle(self) -> None:
        """Sort the units' parts by what is done with them."""
        self._active = self.units.of(self.redundant & ~self.zero)
        self._fixed = self.units.of(self.zero)

    def _lowest(self, scores: Tensor, count: int) -> Tensor:
        """The `count` units with the lowest scores that are not redundant, but the last of no group: bool [units]."""
        free = scores.masked_fill(self.redundant, -math.inf)
        best = torch.full((len(self.units.sizes),), -math.inf, device=free.device, dtype=free.dtype)
        best = best.scatter_reduce(0, self.units.group, free, "amax")
        order = torch.arange(len(free), device=free.device)
        first = torch.full_like(best, len(free), dtype=torch.int64).scatter_reduce(
            0, self.units.group[free == best[self.units.group]], order[free == best[self.units.group]], "amin"
        )
        closed = self.redundant.clone()
        closed[first] = True
        chosen = torch.zeros_like(self.redundant)
        chosen[torch.sort(scores.masked_fill(closed, math.inf), stable=True).indices[:count]] = True
        return chosen

    def _choose(self, period: int, x: list[Tensor], d: list[Tensor]) -> Tensor:
        """The units that become redundant in this period, from all slices and directions: bool [units]."""
        raise NotImplementedError

    def _move(self, t: int, before: list[Tensor]) -> None:
        """Move the active parts, in step t of the period."""
        raise NotImplementedError


class HESSO(GroupSparse):
    """Progressive shrink, see `hesso`."""

    def _choose(self, period: int, x: list[Tensor], d: list[Tensor]) -> Tensor:
        """Those with the lowest mean of five criteria, each divided by its Euclidean norm over all units."""
        units, parts = self.units, self.units.parts
        norm, other, inner = (units.dots(parts, *pair) for pair in ((x, x), (d, d), (x, d)))
        norm, other = norm.sqrt(), other.sqrt()
        criteria = (
            norm,
            norm / units.elements,
            inner / (norm + _TINY) / (other + _TINY) + 1,
            inner.abs(),
            inner.square() / 2,
        )
        each = self.wanted // self.periods
        count = self.wanted - period * each if period + 1 == self.periods else each
        return self._lowest(sum(c / (c.norm() + _TINY) / len(criteria) for c in criteria), count)

    def _move(self, t: int, before: list[Tensor]) -> None:
        for part in self._active:
            part.scale((self.period - t - 1) / (self.period - t))


class DHSPG(GroupSparse):
    """Dual half-space projected gradient, see `dhspg`.

    Attributes
    ----------
    forced : int
        How many units were not zero by themselves when the phase ended.
    """

    _looks_back = True

    def __init__(
        self,
        units: Units,
        base: torch.optim.Optimizer,
        target: float,
        start: int,
        steps: int,
        *,
        penalty: float,
        amplify: float,
        coefficient: float,
        epsilon: float,
    ) -> None:
        super().__init__(units, base, target, start, steps, 1)
        self.penalty, self.amplify, self.coefficient, self.epsilon = penalty, amplify, coefficient, epsilon
        self.forced = 0

    def _options(self) -> dict[str, float | str]:
        rule = {name: getattr(self, name) for name in ("penalty", "amplify", "coefficient", "epsilon")}
        return {**super()._options(), **rule}

    def state_dict(self) -> dict[str, Any]:
        """As that of `GroupSparse`, with `forced`."""
        state = super().state_dict()
        state["group_sparse"]["forced"] = self.forced
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As that of `GroupSparse`."""
        super().load_state_dict(state_dict)
        self.forced = state_dict["group_sparse"]["forced"]

    def _choose(self, period: int, x: list[Tensor], d: list[Tensor]) -> Tensor:
        """Those with the highest 0.5 norm(cos(-x, -d)) + 0.5 norm(1 / (|x| / size))."""
        units, parts = self.units, self.units.parts
        norm, other, inner = (units.dots(parts, *pair) for pair in ((x, x), (d, d), (x, d)))
        norm, other = norm.sqrt(), other.sqrt()
        cosine = inner / (norm * other).clamp_min(_TINY)
        size = 1 / (norm / units.elements + 1e-6)
        redundancy = 0.5 * cosine / cosine.norm().clamp_min(_TINY) + 0.5 * size / size.norm()
        return self._lowest(-redundancy, self.wanted)

    def _move(self, t: int, before: list[Tensor]) -> None:
        units, parts = self.units, self._active
        after = [part.read() for part in parts]
        d = [(x - y).div_(part.lr or 1.0) for part, x, y in zip(parts, before, after, strict=True)]
        norm, inner = units.dots(parts, before, before).sqrt(), units.dots(parts, before, d)
        pull = self._lambda(norm, inner, units.dots(parts, d, d)) / (norm + _TINY)
        for part, x, y in zip(parts, before, after, strict=True):
            y.sub_(x * (part.lr * pull[part.unit]).unsqueeze(1))
        self.zero |= self.redundant & ((units.dots(parts, after, before) < self.epsilon * norm.square()) | (norm == 0))
        if t == self.period - 1:
            self.forced = int((self.redundant & ~self.zero).sum())
            self.zero |= self.redundant
        for part, y in zip(parts, after, strict=True):
            part.write(y.mul_(~self.zero[part.unit].unsqueeze(1)))

    def _lambda(self, norm: Tensor, inner: Tensor, squared: Tensor) -> Tensor:
        """Lambda for each unit from |x|, <x, d> and |d|^2; what it is for units that are not redundant is unused."""
        away = inner < 0
        lower = torch.where(away, -inner / norm.clamp_min(_TINY), 0.0)
        upper = torch.where(away, -squared * norm / inner.masked_fill(~away, -1.0), math.inf)
        raised = (self.amplify * lower).clamp(self.penalty, self.penalty * self.coefficient)
        raised = torch.where(raised >= upper, (upper + lower) / 2, raised)
        return torch.where(away, raised, self.penalty)
