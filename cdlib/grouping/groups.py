"""Which channels belong together: the groups of a network's slices that can only be removed together.

A *unit* is the smallest thing that can be removed: for a channel between two convolutions, a row of the first one's
weight and bias, its entries in the norm, and a column of the second one's weight. A *group* holds all units that change
the same tensors, one per channel: a node group of the OTO papers. The own slices of a unit, which make what it hands on
(rows, biases, scale and shift), form its PZIG (pruning zero-invariant group, Chen et al. 2023, arXiv:2312.09411):
when they are zero, nothing is handed on, and the unit can be removed without changing what the network computes, unless
something on the way turns zeros into other numbers or takes statistics over channels. Both are found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import nn

from cdlib.errors import CdlibError, check_whole, unknown
from cdlib.graph import Graph, Inputs
from cdlib.grouping.labels import Ids, Key
from cdlib.grouping.preconditions import check
from cdlib.grouping.walk_state import Walk
from cdlib.torch_state import tensors_of

Drop = Mapping[str, Iterable[int]]


class Slice(NamedTuple):
    """Some indices of one dimension of a parameter or buffer."""

    tensor: str  #: Its qualified name, as in ``model.state_dict()``.
    dim: int  #: The dimension.
    indices: tuple[int, ...]  #: The indices along it, in increasing order.


@dataclass(frozen=True, eq=False)
class Group:
    """Units that change the same tensors."""

    name: str  #: The layer that makes the channels (the first in the run); further groups of it get ``#2``, ``#3``, ...
    size: int  #: Number of units.
    prunable: bool  #: Whether units may be removed.
    zero_invariant: bool  #: Whether a unit whose own slices are zero can go and the network still computes the same.
    reason: str  #: Why the group is not prunable or, if it is, why it is not zero-invariant; empty if it is both.
    stems: tuple[str, ...]  #: The weights whose rows make the channels, in the order of the run.
    tensors: tuple[Key, ...]  #: Every tensor and dimension that a unit has slices of.
    own: tuple[Key, ...]  #: Those of them that belong to the units' PZIG; the others are read by later layers.
    places: Mapping[Key, tuple[Ids, Ids]] = field(repr=False)
    """For each of `tensors` two int64 arrays of the same length, of units and of the indices along the dimension that
    vanish with them."""

    def slices(self, unit: int) -> list[Slice]:
        """Return the slices that vanish with a unit; a CdlibError if there is no such unit."""
        return [Slice(*key, tuple(self.indices([unit], key).tolist())) for key in self.tensors]

    def pzig(self, unit: int) -> list[Slice]:
        """Return those of the `slices` that are the unit's own: that make the channel, which `cdlib.zero` zeroes."""
        return [Slice(*key, tuple(self.indices([unit], key).tolist())) for key in self.own]

    def indices(self, units: Sequence[int], key: Key) -> Ids:
        """Return the indices along one of `tensors`, by its name and dimension, that vanish with some units."""
        for unit in units:
            if isinstance(unit, bool) or not isinstance(unit, int | np.integer) or not 0 <= unit < self.size:
                raise CdlibError(f"group {self.name!r} has no unit {unit!r}: its units are 0 to {self.size - 1}.")
        of_unit, index = self.places[key]
        return np.sort(index[np.isin(of_unit, np.asarray(units, dtype=np.int64))])


class Groups(Sequence[Group]):
    """The groups of a network, in the order of the run; also indexable by name. `print` shows them as a table.

    They remember the `walk` through the captured network with the labels of its indices, the `inputs` that it was
    called with (the example and its `batch_dim`), and the names in `keep`, of which nothing may be removed.
    """

    def __init__(
        self, groups: Iterable[Group], model: nn.Module, walk: Walk, inputs: Inputs, keep: Iterable[str]
    ) -> None:
        self._groups = list(groups)
        self._names = {group.name: group for group in self._groups}
        self._model, self._tensors = type(model).__name__, _shapes(model)
        self.walk, self.inputs, self.keep = walk, inputs, tuple(keep)

    @property
    def graph(self) -> Graph:
        """The captured network."""
        return self.walk.graph

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self._names)

    @overload
    def __getitem__(self, key: int | str) -> Group: ...
    @overload
    def __getitem__(self, key: slice) -> list[Group]: ...
    def __getitem__(self, key: int | str | slice) -> Group | list[Group]:
        if isinstance(key, str):
            if key not in self._names:
                raise unknown("group", key, self._names)
            return self._names[key]
        return self._groups[key]

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def prunable(self) -> list[Group]:
        """The groups whose units may be removed."""
        return [group for group in self if group.prunable]

    def inputs_for(self, model: nn.Module) -> Inputs:
        """Return the example, on the device of a network."""
        devices = [tensor.device for tensor in tensors_of(model).values()]
        return self.inputs.map(lambda t: t if not devices or t.device in devices else t.to(devices[0]))

    def check(self, drop: Drop, round_to: int = 1) -> dict[str, list[int]]:
        """Return the units to drop as lists without repetition.

        With `round_to`, those named last stay, so that the widths are multiples of it, or what they were. A CdlibError
        if a group is unknown, not prunable or would be removed whole, or has no such unit; or for no multiple.
        """
        check_whole("round_to", round_to, 1)
        if not isinstance(drop, Mapping):
            raise CdlibError(f"drop is {type(drop).__name__!r}: give a dictionary from a group's name to its units.")
        found: dict[str, list[int]] = {}
        for name, units in drop.items():
            group = self[str(name)]
            if isinstance(units, str) or not isinstance(units, Iterable):
                raise CdlibError(f"drop[{name!r}] is {units!r}: give a list of units, for example [0, 2, 5].")
            chosen = list(dict.fromkeys(units))
            group.indices(chosen, group.tensors[0])
            if chosen and not group.prunable:
                raise CdlibError(f"group {name!r} cannot be pruned: it {group.reason}. Leave it out of drop.")
            if chosen and len(chosen) == group.size:
                raise CdlibError(f"drop removes all {group.size} units of group {name!r}: keep at least one.")
            stay = min(group.size, -(-(group.size - len(chosen)) // round_to) * round_to)
            found[name] = [int(unit) for unit in chosen[: group.size - stay]]
        return found

    def __repr__(self) -> str:
        return f"<{len(self)} groups of {self._model}, {len(self.prunable)} of them prunable>"

    def __str__(self) -> str:
        head = ("group", "units", "prunable", "zero-invariant", "own slices in", "read by", "reason")
        rows = [_row(group) for group in self]
        widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join(line.rstrip() for line in (repr(self)[1:-1], *lines))


def _row(group: Group) -> tuple[str, ...]:
    makers = {tensor.rpartition(".")[0] for tensor, _ in group.own}
    readers = [tensor for tensor, _ in group.tensors if tensor.rpartition(".")[0] not in makers]
    yes = ("no", "yes")
    return (
        group.name,
        str(group.size),
        yes[group.prunable],
        yes[group.zero_invariant] if group.prunable else "",
        _some([tensor for tensor, _ in group.own]),
        _some(readers),
        group.reason,
    )


def _some(names: list[str], most: int = 3) -> str:
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" +{len(layers) - most}" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more


def _shapes(model: nn.Module) -> dict[str, str]:
    """Shape and type of every parameter and buffer, as text."""
    return {name: f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors_of(model).items()}


def check_groups(groups: Groups, model: nn.Module) -> None:
    """Raise a CdlibError unless these are the groups of a network, of a copy of it, or of one with other numbers only.

    Its parameters and buffers, masks among them, must have the names, shapes and types that were found, and nothing may
    be in the way of cutting it, as `find_groups` says.
    """
    if not isinstance(groups, Groups):
        raise CdlibError(f"groups is {type(groups).__name__!r}: give what cdlib.find_groups(model, ...) returns.")
    check(model, ())
    found, held = groups._tensors, _shapes(model)
    for name in dict.fromkeys([*found, *held]):
        if held.get(name) != found.get(name):
            theirs, mine = (shapes.get(name, "not there") for shapes in (found, held))
            raise CdlibError(
                f"these groups are not of this {type(model).__name__}: {name} was {theirs} in the {groups._model} "
                f"they were found for, and is {mine} here; call find_groups for the network that you pass."
            )


def parameter_share(model: nn.Module, groups: Iterable[Group]) -> float:
    """Return the share of a network's parameters of which some unit of the groups has a slice.

    From 0 to 1; 0 for a network without parameters. Slices that are read by later layers count too.

    Parameters
    ----------
    model : nn.Module
        The network that the groups are of.
    groups : iterable of Group
        For example ``groups.prunable``.
    """
    untouched = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in model.named_parameters()}
    for group in groups:
        for name, dim in group.tensors:
            if name in untouched:
                index = group.indices(range(group.size), (name, dim))
                untouched[name].index_fill_(dim, torch.from_numpy(index), False)
    total = sum(mark.numel() for mark in untouched.values())
    return 1 - sum(int(mark.sum()) for mark in untouched.values()) / total if total else 0.0
