"""The units of a network as segments of its parameters: what joint training and pruning reads and writes at each step.

A unit's own slices (its PZIG) lie in several tensors. They are summed and spread for all units at once, as slices in
one row, so that the cost does not grow with the number of units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm as norm

from cdlib.errors import CdlibError
from cdlib.grouping import Groups, check_groups
from cdlib.pruning.weight_masks import masks_of

_BLOCK = 1 << 16  # elements


@dataclass(eq=False)
class Part:
    """Slices of one parameter along one dimension, and the unit that each belongs to."""

    parameter: nn.Parameter
    dim: int
    index: Tensor  # int64 [n], where the slices are along the dimension
    unit: Tensor  # int64 [n], the numbers of their units
    settings: dict[str, Any]  # the parameter group of the optimizer, which holds the learning rate
    number: int  # of the part among all those of the network

    def blocks(self, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The parameter and tensors of as many slices, in blocks that stay in a processor's cache."""
        own = self.parameter.detach()
        size = own.shape[self.dim]
        rows = size if own.device.type != "cpu" else max(1, _BLOCK * size // own.numel())
        return zip(*(t.split(rows, self.dim) for t in (own, *others)), strict=True)


class Segments:
    """Parts, and their slices in one row, part after part; `count` is the number of units of the network.

    Numbers of slices and units are of the type `wide`: float64, where the device has it.
    """

    def __init__(self, parts: list[Part], count: int, device: torch.device) -> None:
        self.parts, self._count = parts, count
        self._copies: list[Tensor] = []
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self._sizes = [part.parameter.shape[part.dim] for part in parts]
        starts = [0, *accumulate(self._sizes)]
        none = torch.zeros(0, dtype=torch.int64, device=device)
        # Of the slices that belong to units: where they are in a row of all slices of the parameters, and their units.
        self._place = torch.cat([none, *(part.index + start for part, start in zip(parts, starts, strict=False))])
        self._unit = torch.cat([none, *(part.unit for part in parts)])
        self._dtype = reduce(torch.promote_types, [part.parameter.dtype for part in parts], torch.float32)

    def values(self, *, reuse: bool = False) -> list[Tensor]:
        """A copy of the parameter of each part; with `reuse` always into the same memory, which saves asking for it."""
        own = [part.parameter.detach() for part in self.parts]
        if not reuse:
            return [values.clone() for values in own]
        self._copies = self._copies or [torch.empty_like(values) for values in own]
        for copy, values in zip(self._copies, own, strict=True):
            copy.copy_(values)
        return self._copies

    def rates(self) -> Tensor:
        """The learning rate of each slice, [slices]."""
        rates = torch.tensor([float(part.settings["lr"]) for part in self.parts], dtype=self.wide)
        return rates.repeat_interleave(torch.tensor(self._sizes)).to(self._place.device)[self._place]

    def products(self, before: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``|x|^2``, ``|m|^2``, ``<x, m>`` of earlier slices x and their moves m since then: [slices] each."""
        found = []
        for part, old in zip(self.parts, before, strict=True):
            others = tuple(k for k in range(old.dim()) if k != part.dim)
            for y, x in ((t.to(self._dtype) for t in block) for block in part.blocks(old)):
                m = x - y
                xm = x * m
                found.append((norm(x, dim=others), norm(m, dim=others), xm.sum(others)) if others else (x, m, xm))
        lengths, moves, inner = (torch.cat(values)[self._place].to(self.wide) for values in zip(*found, strict=True))
        return lengths.square(), moves.square(), inner

    def norms(self, products: tuple[Tensor, Tensor, Tensor], rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return |x|, |d| and <x, d> of each unit, [units], from `products` of slices x and moves lr d."""
        xx, mm, xm = products
        rate = rates.masked_fill(rates == 0, 1.0)
        squared, other, inner = self.sum(torch.stack([xx, mm / rate.square(), xm / rate]))
        return squared.sqrt(), other.sqrt(), inner

    def sum(self, values: Tensor) -> Tensor:
        """Add up numbers of the slices, [..., slices], by unit: [..., units], of units without a slice 0."""
        return values.new_zeros(*values.shape[:-1], self._count).index_add_(-1, self._unit, values)

    def each(self, values: Tensor) -> Tensor:
        """Numbers of units, [units], for each of their slices: [slices]."""
        return values[self._unit]

    def pull(self, before: list[Tensor], by: Tensor, factors: Tensor) -> None:
        """Subtract multiples of earlier values, by a number for each slice, and scale, by one for each unit."""
        minus, times = self._spread(by, 0.0), self._spread(self.each(factors), 1.0)
        for part, *given in zip(self.parts, before, minus, times, strict=True):
            for y, x, less, factor in part.blocks(*given):
                y.addcmul_(x, less, value=-1)
                if factor.device.type != "cpu" or not factor.all():  # to ask costs less than a pass, but on a GPU
                    y.mul_(factor)

    def scale(self, factors: Tensor) -> None:
        """Multiply the slices by a number for each unit, [units], in place.

        This is several times faster than to fill the slices of some units, even though it touches all of them.
        """
        for part, times in zip(self.parts, self._spread(self.each(factors), 1.0), strict=True):
            part.parameter.detach().mul_(times)

    def _spread(self, values: Tensor, rest: float) -> Iterator[Tensor]:
        """Numbers of slices as a factor for each parameter; `rest` where it belongs to no unit here."""
        row = torch.full((sum(self._sizes),), rest, dtype=self._dtype, device=values.device)
        row.scatter_(0, self._place, values.to(self._dtype))
        for part, found in zip(self.parts, row.split(self._sizes), strict=True):
            yield found.view([-1 if k == part.dim else 1 for k in range(part.parameter.dim())])


class Units:
    """The units of the zero-invariant groups of a network of which an optimizer trains all parameters.

    The units of all groups are numbered one after the other. A CdlibError if there is no such group, or the optimizer
    is none that can be built on.
    """

    def __init__(self, model: nn.Module, groups: Groups, optimizer: torch.optim.Optimizer) -> None:
        check_groups(groups, model)
        _check_base(optimizer)
        held = dict(model.named_parameters())
        trained = {id(p): group for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        self.sizes: dict[str, int] = {}  # the groups and their numbers of units
        parts: list[Part] = []
        for group in groups.prunable:
            if group.zero_invariant and group.own and all(id(held.get(name)) in trained for name, _ in group.own):
                first = sum(self.sizes.values())
                for name, dim in group.own:
                    unit, index = (torch.from_numpy(a).to(held[name].device) for a in group.places[name, dim])
                    parts.append(Part(held[name], dim, index, unit + first, trained[id(held[name])], len(parts)))
                self.sizes[group.name] = group.size
        if not self.sizes:
            masked = any(map(masks_of, model.modules()))
            why = "It has masks: call permanent first." if masked else "print(find_groups(...)) says why."
            raise CdlibError(
                f"{groups!r}, but none is zero-invariant with all its parameters trained by this optimizer: there is "
                f"nothing that it could remove. {why}"
            )
        self.count = sum(self.sizes.values())  # of units
        device = parts[0].parameter.device
        counts = torch.tensor(list(self.sizes.values()), device=device)
        self.group = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)  # of each unit, [units]
        self.all = Segments(parts, self.count, device)  # all their own slices
        numbers = [torch.full_like(p.unit, p.parameter.numel() // p.parameter.shape[p.dim]) for p in parts]
        self.elements = self.all.sum(torch.cat(numbers))  # how many numbers each unit's slices hold, [units]

    def regroup(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over the optimizer's parameter groups, which loading a state replaces."""
        trained = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for part in self.all.parts:
            part.settings = trained[id(part.parameter)]

    def of(self, units: Tensor) -> Segments:
        """The slices of some of the units, given as bool [units]."""
        found = []
        for part in self.all.parts:
            chosen = units[part.unit]
            if bool(chosen.any()):
                found.append(replace(part, index=part.index[chosen], unit=part.unit[chosen]))
        return Segments(found, self.count, self.group.device)

    def lengths(self) -> Tensor:
        """The Euclidean norm of each unit, [units]."""
        squares, _, _ = self.all.products([part.parameter.detach() for part in self.all.parts])
        return self.all.sum(squares).sqrt()

    def named(self, units: Tensor) -> dict[str, list[int]]:
        """Some units, given as bool [units], by group: for `cdlib.remove`."""
        split = units.cpu().split(list(self.sizes.values()))
        found = {name: part.nonzero().flatten().tolist() for name, part in zip(self.sizes, split, strict=True)}
        return {name: chosen for name, chosen in found.items() if chosen}


def _check_base(optimizer: object) -> None:
    """Raise unless an optimizer does its step without a closure and has learning rates."""
    good = isinstance(optimizer, torch.optim.Optimizer) and not isinstance(optimizer, torch.optim.LBFGS)
    if not good or any("lr" not in group for group in optimizer.param_groups):  # type: ignore[attr-defined]
        raise CdlibError(
            f"base={type(optimizer).__name__}: give a torch optimizer with a learning rate that needs no closure, "
            "for example torch.optim.SGD(model.parameters(), lr=0.1)."
        )
