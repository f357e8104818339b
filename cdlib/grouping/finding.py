"""Find the groups of a network: capture it, carry labels through it, and sort them into units and groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from cdlib.errors import CdlibError, unknown
from cdlib.graph import ExampleInput, Inputs, capture
from cdlib.grouping.groups import Group, Groups
from cdlib.grouping.labels import Ids, Key, Ledger, Problem
from cdlib.grouping.ops import arguments
from cdlib.grouping.preconditions import check, check_course, training_run
from cdlib.grouping.propagation import choose_reshapes
from cdlib.grouping.walk_state import Walk
from cdlib.torch_state import tensors_of


def find_groups(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    kwargs: Mapping[str, Any] | None = None,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
) -> Groups:
    """Find which slices of a network's parameters and buffers can only be removed together.

    Returns the `Groups` in the order of the run; empty only for a network without layers.

    Parameters
    ----------
    model : nn.Module
        Any network that runs. It is run once, in evaluation mode, with its hooks, in its own precision (whatever
        `torch.autocast` is around the call), and left as it was found.
    example_input : tensor or tuple
        What the network is called with: a tensor, or a tuple of its positional arguments.
    kwargs : dict, optional
        Its arguments by name.
    keep : iterable of str, optional
        Modules, parameters or buffers, by name, of which nothing may be removed.
    batch_dim : int or None, default 0
        The dimension of the input that counts samples; None if there is none.

    Raises
    ------
    CdlibError
        If the network cannot be captured, is quantized or compiled, is on another device than the input, or has
        nothing called as in `keep`.
    """
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise CdlibError(f"keep={keep!r}: give a list of names, for example [{str(keep)!r}], or ().")
    check(model, (example_input, kwargs))
    inputs, kept = Inputs.of(example_input, kwargs, batch_dim), _kept(model, keep := list(keep))
    graph = capture(model, inputs.args, kwargs=inputs.kwargs, batch_dim=batch_dim)
    check_course(graph)
    done = choose_reshapes(graph, training_run(model, graph, inputs))
    return Groups(_assembled(done, kept), model, done, inputs, keep)


def find_again(model: nn.Module, groups: Groups, inputs: Inputs | None = None) -> Groups:
    """Find the groups of a network with the example, or another one, and the options with which some were found."""
    inputs = inputs or groups.inputs_for(model)
    return find_groups(model, inputs.args, kwargs=inputs.kwargs, keep=groups.keep, batch_dim=inputs.batch_dim)


def _kept(model: nn.Module, keep: Iterable[str]) -> dict[str, str]:
    """The tensors of which nothing may be removed, to the name that the user gave."""
    tensors = list(tensors_of(model))
    modules = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for name in keep:
        inside = [tensor for tensor in tensors if tensor == name or tensor.startswith(f"{name}.")]
        if name not in modules and not inside:
            raise unknown("module or parameter in keep:", name, [*modules, *tensors])
        found |= dict.fromkeys(inside, name)
    return found


def _assembled(done: Walk, kept: Mapping[str, str]) -> list[Group]:
    """Sort the labels into units, one per component that holds a row of some weight, and the units into groups.

    `kept` maps the tensors of which nothing may be removed to the name under which the user gave them.
    """
    ledger, of = done.ledger, done.ledger.components()
    made, read = ledger.roles()
    not_own = (read - made) | {(name, 0) for name in _statistics(done)}
    why_not, why = _frozen(ledger, of, kept), _changed(ledger, of)

    is_root = np.zeros(ledger.count, dtype=bool)
    for key in made:
        first, size = ledger.atoms[key]
        is_root[of[first : first + size]] = True
    roots = np.flatnonzero(is_root)
    unit_of = np.where(is_root, np.cumsum(is_root) - 1, -1)[of]
    units = {key: unit_of[first : first + size] for key, (first, size) in ledger.atoms.items()}
    kind = _kinds(list(units.values()), why_not[roots], why[roots])
    number: Ids = np.asarray(pd.Series(kind).groupby(kind).cumcount())  # of a unit in its group

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


def _first_reasons(ledger: Ledger, of: Ids, problems: list[Problem]) -> Ids:
    """For every component (by its first label) the number of the first reason that problems give; 0 for none."""
    found = np.zeros(ledger.count, dtype=np.int64)
    for problem in reversed(problems):
        found[of[problem.ids]] = ledger.reason(problem.reason)
    return found


def _frozen(ledger: Ledger, of: Ids, kept: Mapping[str, str]) -> Ids:
    """For every component the number of the reason why it stays."""
    found = _first_reasons(ledger, of, ledger.frozen)
    for (tensor, _), (first, size) in ledger.atoms.items():
        if tensor in kept:
            found[of[first : first + size]] = ledger.reason(f"is kept by your choice of {kept[tensor]!r}")
    return found


def _changed(ledger: Ledger, of: Ids) -> Ids:
    """For every component the number of the reason why removing its zeros changes the function."""
    lost, found = _first_reasons(ledger, of, ledger.lost), np.zeros(ledger.count, dtype=np.int64)
    for problem in reversed(ledger.noticed):
        at = of[problem.ids]
        if not problem.reason.startswith("is not zero"):
            found[at] = ledger.reason(problem.reason)
            continue
        for number in np.unique(lost[at]):
            found[at[lost[at] == number]] = ledger.reason(problem.reason + ledger.reasons[number])
    return found
