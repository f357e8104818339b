"""DHSPG: units are pulled towards zero, and projected onto it once they leave their half-space (arXiv:2303.06862)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cdlib.errors import CdlibError, check_share
from cdlib.grouping import Groups
from cdlib.pruning.oto.group_sparse import TINY, GroupSparse
from cdlib.pruning.oto.units import Units

_RULE = ("penalty", "amplify", "coefficient", "epsilon")


def dhspg(
    model: nn.Module,
    groups: Groups,
    base: Optimizer,
    target: float = 0.5,
    *,
    start: int = 0,
    steps: int,
    penalty: float | None = None,
    amplify: float | None = None,
    coefficient: float | None = None,
    epsilon: float = 0.0,
    min_width: int = 1,
) -> DHSPG:
    """Return an optimizer that pulls redundant units towards zero and projects them onto it (half-space steps).

    After `start` steps, the floor(target * n) units with the highest redundancy are chosen once. From then on each step
    moves them by a further ``-lr * lambda * x / |x|``. One that leaves the half-space of its old self,
    ``<x^, x> < epsilon * |x|^2``, becomes zero. Those that are not zero after `steps` steps are set to zero then;
    `forced` says how many.

    Parameters
    ----------
    model, groups, base, target, start, steps, min_width
        As for `hesso`, and so are the errors.
    penalty : float, optional
        Lambda; by default 1e-3, and 1e-2 over Adam and AdamW. Against a base that does not move a unit, the pull
        shortens it by lambda times the sum of the learning rates: if that is less than its length, it will be forced.
    amplify, coefficient : float, optional
        For a unit that the base moves away from zero, ``<x, d> < 0``, lambda is `amplify` times the least value that
        turns it round, ``-<x, d> / |x|``, but from lambda to `coefficient` times lambda; and where that would no
        longer be a direction of descent, ``lambda >= -|d|^2 |x| / <x, d>``, the mean of both bounds. By default 2
        and 10, over Adam and AdamW 20 and 1000.
    epsilon : float, default 0
        From 0 to below 1: larger values project sooner.
    """
    adam = isinstance(base, torch.optim.Adam | torch.optim.AdamW | torch.optim.NAdam | torch.optim.RAdam)
    given = {"penalty": penalty, "amplify": amplify, "coefficient": coefficient}
    defaults = (1e-2, 20.0, 1e3) if adam else (1e-3, 2.0, 10.0)
    rule = {k: v if v is not None else default for (k, v), default in zip(given.items(), defaults, strict=True)}
    for name, value in rule.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise CdlibError(f"{name}={value!r}: give a positive number.")
    if rule["coefficient"] < 1:
        raise CdlibError(f"coefficient={rule['coefficient']!r}: give a number from 1.")
    check_share("epsilon", epsilon)
    return DHSPG(Units(model, groups, base), base, target, start, steps, min_width, epsilon=epsilon, **rule)


class DHSPG(GroupSparse):
    """Dual half-space projected gradient, see `dhspg`."""

    _looks_back = True
    _options = (*GroupSparse._options, *_RULE)
    _counts = ("step_count", "forced")

    def __init__(
        self, units: Units, base: Optimizer, target: float, start: int, steps: int, min_width: int, **rule: float
    ) -> None:
        super().__init__(units, base, target, start, steps, 1, min_width)
        self.penalty, self.amplify, self.coefficient, self.epsilon = (rule[name] for name in _RULE)
        self.forced = 0  #: How many units were not zero by themselves when the phase ended.

    def _redundant(self, period: int, x: Tensor, d: Tensor, xd: Tensor) -> Tensor:
        """Those with the highest 0.5 norm(cos(-x, -d)) + 0.5 norm(1 / (|x| / size))."""
        cosine = xd / (x * d).clamp_min(TINY)
        size = 1 / (x / self.units.elements + 1e-6)
        redundancy = 0.5 * cosine / cosine.norm().clamp_min(TINY) + 0.5 * size / size.norm()
        return self._lowest(-redundancy, self.wanted)

    def _move(self, t: int, before: list[Tensor]) -> None:
        slices = self._active
        xx, mm, xm = slices.products(before)
        rates = slices.rates()
        norm, other, inner = slices.norms((xx, mm, xm), rates)
        pull = torch.where(self.redundant, self._lambda(norm, inner, other) / (norm + TINY), 0.0)
        by = rates * slices.each(pull)
        kept = slices.sum(xx - xm - by * xx)  # <x^, x>
        self.zero |= self.redundant & ((kept < self.epsilon * norm.square()) | (norm == 0))
        if t == self.period - 1:
            self.forced = int((self.redundant & ~self.zero).sum())
        slices.pull(before, by, ~self.zero)

    def _lambda(self, norm: Tensor, inner: Tensor, other: Tensor) -> Tensor:
        """Lambda for each unit from |x|, <x, d> and |d|; what it is for units that are not redundant is unused."""
        away = inner < 0
        lower = torch.where(away, -inner / norm.clamp_min(TINY), 0.0)
        upper = torch.where(away, -other.square() * norm / inner.masked_fill(~away, -1.0), math.inf)
        raised = (self.amplify * lower).clamp(self.penalty, self.penalty * self.coefficient)
        raised = torch.where(raised >= upper, (upper + lower) / 2, raised)
        return torch.where(away, raised, self.penalty)
