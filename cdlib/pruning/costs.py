"""What is left of a network's parameters, MACs and activations as units vanish, without cutting it each time.

Each operator's cost depends on the widths of the tensors that it reads and makes, and the labels say which positions of
these widths belong to which unit. So a unit that vanishes changes a few widths, and with them the costs of a few
operators. The totals are those of `cdlib.profile` of the network that `cdlib.remove` would return, to the digit; only
where `cdlib.remove` has to rewrite a module may that one make other activations.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from cdlib.complexity import lifetimes, macs_of, products_of
from cdlib.graph import Value, map_tensors
from cdlib.grouping import Groups, Ids, check_groups

RESOURCES = ("params", "macs", "activation_bytes")


@dataclass(eq=False)
class _Tensor:
    """A tensor while units are dropped: what counting reads of a `Value`, and how many of its positions are units'."""

    shape: list[int]
    dtype: torch.dtype
    rows: dict[tuple[str, int], int] = field(default_factory=dict)  # by group and dimension

    def lose(self, group: str, dim: int, count: int) -> None:
        self.rows[group, dim] -= count
        self.shape[dim] -= count

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def share(self, size: int, numel: int) -> int:
        """What is left of a size that it had when it had so many elements."""
        return size * self.numel // numel


@dataclass(eq=False)
class _Item:
    """Something that costs: a parameter, a product or an activation."""

    resource: str
    cost: Callable[[], int]
    reads: list[_Tensor]  # whose shapes the cost is computed from
    owners: list[tuple[str, _Tensor, int]]  # group, tensor and dimension along which its slices belong to the group
    now: int = 0


class Meter:
    """The resources of a network, which is not changed, while units of its groups are dropped.

    `groups` is what `cdlib.find_groups` returned for it; a CdlibError if they are of another network.

    Attributes
    ----------
    totals : dict from str to int
        ``params``, ``macs`` and ``activation_bytes`` of what is left.
    kept : dict from str to int
        By prunable group, how many units are left.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        check_groups(groups, model)
        self.groups = {group.name: group for group in groups.prunable}
        self.totals = dict.fromkeys(RESOURCES, 0)
        self.kept = {name: group.size for name, group in self.groups.items()}
        self._left = {name: np.ones(group.size, dtype=bool) for name, group in self.groups.items()}
        self._touches: dict[str, list[tuple[_Tensor, int, Ids]]] = {name: [] for name in self.groups}
        self._tensors: dict[int, _Tensor] = {}
        self._walk, self._names = groups.walk, list(self.groups)
        self._group_of, self._unit_of = self._find_units()
        self._items = [*self._parameters(model), *self._products(), *self._activations()]
        self._changed_by: dict[str, list[_Item]] = defaultdict(list)
        for item in self._items:
            for name in {name for tensor in item.reads for name, _ in tensor.rows}:
                self._changed_by[name].append(item)
            self._count(item)

    def drop(self, name: str, units: Iterable[int]) -> None:
        """Take units out of a group, and count again what that changes; a ValueError if some are gone already."""
        chosen = np.asarray(list(units), dtype=np.int64)
        if not self._left[name][chosen].all() or len(set(chosen.tolist())) < len(chosen):
            raise ValueError(f"some of the units {chosen.tolist()} of group {name!r} are gone already")
        self._left[name][chosen] = False
        self.kept[name] -= len(chosen)
        for tensor, dim, positions in self._touches[name]:
            tensor.lose(name, dim, int(positions[chosen].sum()))
        for item in self._changed_by[name]:
            self._count(item)

    def left(self, name: str) -> Ids:
        """The units of a group that are left, in order."""
        return np.flatnonzero(self._left[name])

    def dropped(self) -> dict[str, list[int]]:
        """The units that are gone, by group: for `cdlib.remove`."""
        gone = {name: np.flatnonzero(~left).tolist() for name, left in self._left.items()}
        return {name: units for name, units in gone.items() if units}

    def shares(self, resource: str) -> dict[str, float]:
        """Return what the own slices of each prunable group cost of one of the `RESOURCES`.

        That is the parameters in them, the MACs that make the group's channels, and the bytes of activations that hold
        them. For a chain of layers it is the cost of each layer; a group that makes several layers' channels
        costs the sum. What belongs to no prunable group is in no share.
        """
        found = dict.fromkeys(self.groups, 0.0)
        for item in self._items:
            if item.resource == resource:
                for name, tensor, dim in item.owners:
                    found[name] += item.now * tensor.rows[name, dim] / tensor.shape[dim]
        return found

    def _count(self, item: _Item) -> None:
        self.totals[item.resource] -= item.now
        item.now = item.cost()
        self.totals[item.resource] += item.now

    # Which positions of which tensors belong to which units.

    def _find_units(self) -> tuple[Ids, Ids]:
        """For every label, the number of the group and the unit that it vanishes with; -1 for none."""
        ledger = self._walk.ledger
        of = ledger.components()
        group_of, unit_of = np.full(ledger.count, -1), np.full(ledger.count, -1)
        for number, group in enumerate(self.groups.values()):
            for key, (units, index) in group.places.items():
                roots = of[ledger.atoms[key][0] + index]
                group_of[roots], unit_of[roots] = number, units
        return group_of[of], unit_of[of]

    def _tensor(self, value: Value) -> _Tensor:
        """What follows a value of the graph."""
        if value.index not in self._tensors:
            found = self._tensors[value.index] = _Tensor(list(value.shape), value.dtype)
            for dim, axis in enumerate(self._walk.of(value).axes if value.shape else ()):
                if axis is not None:
                    self._touch(found, dim, axis.ids[axis.ids >= 0])
        return self._tensors[value.index]

    def _touch(self, tensor: _Tensor, dim: int, labels: Ids) -> None:
        """Note how many positions along a dimension vanish with each unit."""
        group_of, unit_of = self._group_of[labels], self._unit_of[labels]
        for number in np.unique(group_of[group_of >= 0]).tolist():
            name = self._names[number]
            positions = np.bincount(unit_of[group_of == number], minlength=self.groups[name].size)
            self._touches[name].append((tensor, dim, positions))
            tensor.rows[name, dim] = int(positions.sum())

    # What costs.

    def _parameters(self, model: nn.Module) -> Iterator[_Item]:
        atoms = self._walk.ledger.atoms
        for name, parameter in model.named_parameters():
            tensor = _Tensor(list(parameter.shape), parameter.dtype)
            for dim in range(parameter.dim()):
                if (name, dim) in atoms:
                    first, size = atoms[name, dim]
                    self._touch(tensor, dim, np.arange(first, first + size))
            owners = [(group, tensor, dim) for group, dim in tensor.rows if (name, dim) in self.groups[group].own]
            yield _Item("params", partial(tensor.share, parameter.numel(), parameter.numel()), [tensor], owners)

    def _products(self) -> Iterator[_Item]:
        for op in self._walk.graph.ops:
            if macs_of(op):
                made, *_ = outputs = [self._tensor(value) for value in op.outputs]
                owners = [(name, made, dim) for name, dim in made.rows]
                left = map_tensors(self._tensor, {"args": op.args, "outputs": op.outputs}, Value)
                cost = partial(products_of, replace(op, **left))
                yield _Item("macs", cost, [*map(self._tensor, op.inputs), *outputs], owners)

    def _activations(self) -> Iterator[_Item]:
        lasting = lifetimes(self._walk.graph)
        for op in self._walk.graph.ops:
            for value in op.outputs:
                if lasting.get(value.storage, (None,))[0] == op.index and value.numel:
                    _, _, size = lasting.pop(value.storage)
                    tensor = self._tensor(value)
                    owners = [(name, tensor, dim) for name, dim in tensor.rows]
                    yield _Item("activation_bytes", partial(tensor.share, size, value.numel), [tensor], owners)
