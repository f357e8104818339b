"""From what a walk found out about labels to the groups of a network, for `cdlib.grouping.finding`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cdlib.grouping.groups import Group, Key
from cdlib.grouping.labels import Ids, Ledger
from cdlib.grouping.ops import arguments
from cdlib.grouping.walk_state import Walk


def assemble(done: Walk, kept: Mapping[str, str]) -> list[Group]:
    """Sort the labels into units, one per component that holds a row of some weight, and the units into groups.

    Parameters
    ----------
    done : Walk
        Through the network.
    kept : dict
        The tensors of which nothing may be removed, to the name under which the user gave them.
    """
    ledger, of = done.ledger, done.ledger.components()
    made, read = ledger.roles()
    not_own = (read - made) | {(name, 0) for name in _statistics(done)}
    why_not, why = _frozen(done, of, kept), _changed(done, of)

    is_root = np.zeros(ledger.count, dtype=bool)
    for key in made:
        first, size = ledger.atoms[key]
        is_root[of[first : first + size]] = True
    roots = np.flatnonzero(is_root)
    unit_of = np.where(is_root, np.cumsum(is_root) - 1, -1)[of]
    units = {key: unit_of[first : first + size] for key, (first, size) in ledger.atoms.items()}
    kind = _kinds(list(units.values()), why_not[roots], why[roots])
    number = _count_up(kind)

    found, names = [], dict[str, int]()
    in_order = _in_order(ledger, made)
    for members, first_unit in _members(units, kind, in_order):
        stems = sorted(made.intersection(members), key=lambda key: in_order[key])
        layer = stems[0][0].rpartition(".")[0] or stems[0][0]
        names[layer] = names.get(layer, 0) + 1
        this = kind[first_unit]
        reasons = (ledger.reasons[why_not[roots[first_unit]]], ledger.reasons[why[roots[first_unit]]])
        places = {}
        for key in members:
            index = np.flatnonzero((units[key] >= 0) & (kind[units[key]] == this))
            places[key] = (number[units[key][index]], index)
        group = Group(
            name=layer if names[layer] == 1 else f"{layer}#{names[layer]}",
            size=int((kind == this).sum()),
            prunable=not reasons[0],
            zero_invariant=not any(reasons),
            reason=reasons[0] or reasons[1],
            stems=tuple(dict.fromkeys(name for name, _ in stems)),
            tensors=tuple(places),
            own=tuple(key for key in places if key not in not_own),
            places=places,
        )
        found.append(group)
    return found


def _in_order(ledger: Ledger, made: set[Key]) -> dict[Key, int]:
    """The place of each tensor that products make rows from in the order in which they ran."""
    keys = list(ledger.atoms)
    starts = [first for first, _ in ledger.atoms.values()]
    first = [keys[int(np.searchsorted(starts, ids[0], side="right")) - 1] for ids in ledger.produced if ids.size]
    return {key: place for place, key in enumerate(dict.fromkeys([*(k for k in first if k in made), *sorted(made)]))}


def _kinds(units: list[Ids], why_not: Ids, why: Ids) -> Ids:
    """Number the units so that those with slices of the same tensors, and the same reasons, have the same number.

    `units` gives for each tensor's dimension the unit of every index, or -1. Sets of tensors are compared by sums of 64
    random bits for each.
    """
    bits = np.random.default_rng(0).integers(2**63, size=len(units) + 2, dtype=np.uint64)
    sums = bits[-1] * why_not.astype(np.uint64) + bits[-2] * why.astype(np.uint64)
    for here, bit in zip(units, bits, strict=False):
        sums[here[here >= 0]] += bit  # once, also for a unit with several indices
    return np.unique(sums, return_inverse=True)[1].astype(np.int64)


def _count_up(kind: Ids) -> Ids:
    """Number the members of each kind from 0 on."""
    order = np.argsort(kind, kind="stable")
    first = np.searchsorted(kind[order], kind[order])
    number = np.empty_like(kind)
    number[order] = np.arange(len(kind)) - first
    return number


def _members(units: Mapping[Key, Ids], kind: Ids, in_order: Mapping[Key, int]) -> list[tuple[list[Key], int]]:
    """The tensors of each kind of units and its first unit, in the order of first stems, then of first units."""
    members: dict[int, list[Key]] = {}
    for key, here in units.items():
        for each in dict.fromkeys(kind[here[here >= 0]].tolist()):
            members.setdefault(each, []).append(key)
    first = {each: int(np.argmax(kind == each)) for each in members}
    stem = {each: min(in_order[key] for key in keys if key in in_order) for each, keys in members.items()}
    return [(members[each], first[each]) for each in sorted(members, key=lambda each: (stem[each], first[each]))]


def _statistics(done: Walk) -> set[str]:
    """Buffers that hold the mean and variance of a batch norm: they are not zeroed."""
    batch_norms = (arguments(op) for op in done.graph.ops if "batch_norm" in op.name)
    values = (args.get(name) for args in batch_norms for name in ("running_mean", "running_var"))
    return {value.name for value in values if value is not None and value.name}


def _frozen(done: Walk, of: Ids, kept: Mapping[str, str]) -> Ids:
    """For every component (by its first label) the number of the reason why it stays; 0 for none."""
    ledger = done.ledger
    found = np.zeros(ledger.count, dtype=np.int64)
    for problem in reversed(ledger.frozen):
        found[of[problem.ids]] = ledger.reason(problem.reason)
    for (tensor, _), (first, size) in ledger.atoms.items():
        if tensor in kept:
            found[of[first : first + size]] = ledger.reason(f"is kept by your choice of {kept[tensor]!r}")
    return found


def _changed(done: Walk, of: Ids) -> Ids:
    """For every component the number of the reason why removing its zeros changes the function; 0 for none."""
    ledger = done.ledger
    lost = np.zeros(ledger.count, dtype=np.int64)
    for problem in reversed(ledger.lost):
        lost[of[problem.ids]] = ledger.reason(f": {problem.reason} does not turn zero into zero")
    found = np.zeros(ledger.count, dtype=np.int64)
    for problem in reversed(ledger.noticed):
        at = of[problem.ids]
        if not problem.reason.startswith("is not zero"):
            found[at] = ledger.reason(problem.reason)
            continue
        for number in np.unique(lost[at]):
            found[at[lost[at] == number]] = ledger.reason(problem.reason + ledger.reasons[number])
    return found
