"""How much of a network its groups reach: the share of its parameters, and the units among some slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import nn

from cdlib.grouping.groups import Group, Key
from cdlib.grouping.labels import Flags, Ids


def share(model: nn.Module, groups: Iterable[Group]) -> float:
    """Return the share of a network's parameters of which some unit of the groups has a slice.

    Parameters
    ----------
    model : nn.Module
        The network that the groups are of.
    groups : iterable of Group
        For example ``groups.prunable``.

    Returns
    -------
    float
        From 0 to 1; 0 for a network without parameters. Slices that are read by later layers count too.
    """
    held = dict(model.named_parameters())
    marks: dict[Key, Flags] = {}
    for group in groups:
        for name, dim in group.tensors:
            if name in held:
                mark = marks.setdefault((name, dim), np.zeros(held[name].shape[dim], dtype=bool))
                mark[group.indices(range(group.size), (name, dim))] = True
    untouched = {name: parameter.numel() for name, parameter in held.items()}
    for (name, _), mark in marks.items():
        untouched[name] = untouched[name] * int((~mark).sum()) // mark.size
    total = sum(parameter.numel() for parameter in held.values())
    return 1 - sum(untouched.values()) / total if total else 0.0


def units_in(group: Group, slices: Mapping[Key, Ids]) -> int:
    """Return how many units of a group vanish with slices, as `cdlib.surgery.slices_of` returns them."""
    of_unit, index = group.places[group.tensors[0]]
    return len(np.unique(of_unit[np.isin(index, slices.get(group.tensors[0], ()))]))
