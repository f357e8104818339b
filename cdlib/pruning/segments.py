"""The units of a network as segments of its parameters: what joint training and pruning reads and writes at each step.

A unit's own slices (its PZIG) lie in several tensors. They are gathered, summed and written back for all units at once,
a tensor at a time, so that the cost does not grow with the number of units.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.pruning.groups import Groups

_BLOCK = 1 << 16  # elements


@dataclass(eq=False)
class Part:
    """Slices of one parameter along one dimension, and the unit that each belongs to.

    Attributes
    ----------
    parameter : nn.Parameter
    dim : int
    index, unit : Tensor, int64 [n]
        Where the slices are along the dimension, and the numbers of their units.
    settings : dict
        The parameter group of the optimizer, which holds the learning rate.
    """

    parameter: nn.Parameter
    dim: int
    index: Tensor
    unit: Tensor
    settings: dict[str, Any]

    @property
    def lr(self) -> float:
        """The learning rate of the parameter."""
        return float(self.settings["lr"])

    def products(self, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``|x|^2``, ``|m|^2``, ``<x, m>`` of earlier slices x and their moves m since then: [n] each."""
        others = tuple(k for k in range(before.dim()) if k != self.dim)
        found = []
        for x, y in self._blocks(before):
            m = x - y
            each = [x * x, m * m, x * m] if not others else [norm(x, others), norm(m, others), (x * m).sum(others)]
            found.append(torch.stack(each))
        xx, mm, xm = torch.cat(found, 1)[:, self.index]
        return xx, mm, xm

    def pull(self, before: Tensor, by: Tensor, factors: Tensor) -> None:
        """Subtract multiples of an earlier value and then scale, by numbers of each unit, [units], in place."""
        by, factors = (self.spread(by, 0.0), self.spread(factors, 1.0))
        split = [t.split(self._rows(before), self.dim) for t in (by, factors)]
        for (x, y), minus, times in zip(self._blocks(before), *split, strict=True):
            y.addcmul_(x, minus, value=-1).mul_(times)

    def scale(self, factors: Tensor) -> None:
        """Multiply the slices by a number for each unit, [units], in place.

        This is several times faster than to fill the slices of some units, even though it touches all of them.
        """
        self.parameter.detach().mul_(self.spread(factors, 1.0))

    def spread(self, values: Tensor, rest: float) -> Tensor:
        """Numbers of units, [units], as a factor for the whole parameter; `rest` where it belongs to no unit here."""
        size = self.parameter.shape[self.dim]
        found = torch.full((size,), rest, dtype=self.parameter.dtype, device=values.device)
        found[self.index] = values[self.unit].to(found.dtype)
        return found.view([size if k == self.dim else 1 for k in range(self.parameter.dim())])

    def _blocks(self, before: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """An earlier value and the present one, in blocks that stay in a processor's cache."""
        size = self._rows(before)
        return zip(before.split(size, self.dim), self.parameter.detach().split(size, self.dim), strict=True)

    def _rows(self, tensor: Tensor) -> int:
        rows = tensor.shape[self.dim]
        return rows if tensor.device.type != "cpu" else max(1, _BLOCK * rows // tensor.numel())


def norm(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The squared Euclidean norm over some dimensions."""
    return torch.linalg.vector_norm(values, dim=dims).square()


class Units:
    """The units of the zero-invariant groups of a network that an optimizer trains.

    Parameters
    ----------
    model : nn.Module
        The network.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    optimizer : torch.optim.Optimizer
        Groups of which it does not train all parameters are left out.

    Attributes
    ----------
    sizes : dict from str to int
        The groups and their numbers of units; the units of all groups are numbered one after the other.
    parts : list of Part
        All their own slices.
    elements : Tensor, int64 [units]
        How many numbers each unit's slices hold.
    group : Tensor, int64 [units]
        The number of each unit's group.

    Raises
    ------
    CdlibError
        If there is no such group.
    """

    def __init__(self, model: nn.Module, groups: Groups, optimizer: torch.optim.Optimizer) -> None:
        held = dict(model.named_parameters())
        trained = {id(p): group for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        self.sizes: dict[str, int] = {}
        self.parts: list[Part] = []
        for group in groups.prunable:
            if group.zero_invariant and group.own and all(id(held.get(name)) in trained for name, _ in group.own):
                first = self.count
                for name, dim in group.own:
                    unit, index = (torch.from_numpy(a).to(held[name].device) for a in group.places[name, dim])
                    self.parts.append(Part(held[name], dim, index, unit + first, trained[id(held[name])]))
                self.sizes[group.name] = group.size
        if not self.sizes:
            raise CdlibError(
                f"{groups!r}, but none is zero-invariant with all its parameters trained by this optimizer: there is "
                "nothing that it could remove. print(find_groups(...)) says why."
            )
        device = self.parts[0].parameter.device
        counts = torch.tensor(list(self.sizes.values()), device=device)
        self.group = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
        self.elements = self.sum(
            self.parts, [torch.full_like(p.unit, p.parameter.numel() // p.parameter.shape[p.dim]) for p in self.parts]
        )

    def regroup(self, optimizer: torch.optim.Optimizer) -> None:
        """Take over the optimizer's parameter groups, which loading a state replaces."""
        trained = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for part in self.parts:
            part.settings = trained[id(part.parameter)]

    @property
    def count(self) -> int:
        """The number of units."""
        return sum(self.sizes.values())

    def of(self, units: Tensor) -> list[Part]:
        """The parts of some of the units, given as bool [units]; what belongs to none of them is left out."""
        found = []
        for part in self.parts:
            chosen = units[part.unit]
            if bool(chosen.any()):
                found.append(Part(part.parameter, part.dim, part.index[chosen], part.unit[chosen], part.settings))
        return found

    def sum(self, parts: Sequence[Part], values: Iterable[Tensor]) -> Tensor:
        """Add up numbers of slices, [n] for each part, by unit: [units], of units without a part 0."""
        total: Tensor | None = None
        for part, value in zip(parts, values, strict=True):
            total = value.new_zeros(self.count) if total is None else total
            total.index_add_(0, part.unit, value)
        assert total is not None
        return total

    def named(self, units: Tensor) -> dict[str, list[int]]:
        """Some units, given as bool [units], by group: for `cdlib.remove`."""
        split = units.cpu().split(list(self.sizes.values()))
        found = {name: part.nonzero().flatten().tolist() for name, part in zip(self.sizes, split, strict=True)}
        return {name: chosen for name, chosen in found.items() if chosen}
