"""HESSO: the least important units shrink to zero, period by period (arXiv:2312.09411, arXiv:2409.09085)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdlib.grouping import Groups
from cdlib.pruning.oto.group_sparse import TINY, GroupSparse
from cdlib.pruning.oto.units import Units


def hesso(
    model: nn.Module,
    groups: Groups,
    base: torch.optim.Optimizer,
    target: float = 0.5,
    *,
    start: int = 0,
    steps: int,
    periods: int = 1,
    min_width: int = 1,
) -> HESSO:
    """Return an optimizer that shrinks the least important units to zero, period by period, while it trains.

    After `start` steps, `steps` steps are divided into `periods` of T = steps // periods. At the start of each, the
    units with the lowest saliency become redundant; in step t = 0, 1, ... of it they are multiplied by
    (T - t - 1) / (T - t) after the base has moved them, and so are zero at its end.

    Parameters
    ----------
    model : nn.Module
        The network that `base` trains, on the device where it is trained.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    base : torch.optim.Optimizer
        Any, for example SGD, Adam or AdamW. Its parameter groups are shared: set learning rates as usual.
    target : float, default 0.5
        The group sparsity: floor(target * n) of the n units of all zero-invariant groups become zero.
    start : int, default 0
        Steps before, in which the base alone trains (warm-up).
    steps : int
        Steps from then until the target is met.
    periods : int, default 1
        In how many parts the redundant units are chosen.
    min_width : int, default 1
        Units that every group keeps, the most important ones. One is what the papers ask for; in a chain, a layer that
        narrow ends all learning.

    Raises
    ------
    CdlibError
        If an option is out of range, nothing could be removed, or the target leaves no unit in a group.
    """
    return HESSO(Units(model, groups, base), base, target, start, steps, periods, min_width)


class HESSO(GroupSparse):
    """Progressive shrink, see `hesso`."""

    def _redundant(self, period: int, x: Tensor, d: Tensor, xd: Tensor) -> Tensor:
        """Those with the lowest mean of five criteria, each divided by its Euclidean norm over all units."""
        criteria = (x, x / self.units.elements, xd / (x + TINY) / (d + TINY) + 1, xd.abs(), xd.square() / 2)
        each = self.wanted // self.periods
        count = self.wanted - period * each if period + 1 == self.periods else each
        return self._lowest(sum(c / (c.norm() + TINY) / len(criteria) for c in criteria), count)

    def _move(self, t: int, before: list[Tensor]) -> None:
        factors = torch.ones_like(self.redundant, dtype=self.units.all.wide)
        factors[self.redundant & ~self.zero] = (self.period - t - 1) / (self.period - t)
        self._active.scale(factors)
