"""Recordings of one call of a module: at inference, out of that of the network, and in training mode by itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import Call, Graph, Inputs, Op, Value, changes, leaves, map_tensors, run
from cdlib.grouping import Ids, Key, follow
from cdlib.surgery.prediction import Prediction, gone
from cdlib.text import one_line

SAMPLES = (2, 5)
"""How many samples a network is recorded with, to see what depends on their number."""


class NotPossible(Exception):
    """A module cannot be rewritten by itself."""


class Recording(NamedTuple):
    """One call of a module: what ran, the call, and what is predicted of it. `flat` submodules are not called in it."""

    prediction: Prediction
    graph: Graph
    call: Call
    flat: Container[str] = ()

    @property
    def name(self) -> str:
        """The module's name in the recording."""
        return self.call.module

    def inputs(self) -> list[Value]:
        """The tensors that the module was called with."""
        return values(self.call.inputs)

    def children(self) -> list[Call]:
        """The calls of its submodules that can stand in its code as calls, in their order; none inside another one."""
        calls = self.graph.calls
        before = reversed(calls[: calls.index(self.call)])
        found: list[Call] = []
        for call in takewhile(lambda c: c.start >= self.call.start and c.module != self.name, before):
            nested = any(
                call.start >= c.start and (call.stop > call.start or inside(call.module, c.module)) for c in found
            )
            if not nested and inside(call.module, self.name) and self._stands_alone(call):
                found.append(call)
        return found[::-1]

    def runs_what(self, alone: Graph) -> bool:
        """Whether the module's own code calls the operators that it does by itself, with the same numbers."""
        own, others = self.own_ops({self.name}), [op for op in alone.ops if not op.module]
        return _match(own, others, lambda a, b: a.shape == b.shape if isinstance(a, Value) else a == b)

    def own_ops(self, modules: Container[str]) -> list[Op]:
        """The operators that the code of some modules called."""
        return [op for op in self.graph.ops[self.call.start : self.call.stop] if op.module in modules]

    def written_out(self) -> set[str]:
        """Its own name and those of the submodules in it that are not called: the modules whose code it replaces."""
        called = [call.module for call in self.children()]
        return {
            name
            for name in self.graph.modules
            if (name == self.name or inside(name, self.name))
            and not any(name == other or inside(name, other) for other in called)
        }

    def _stands_alone(self, call: Call) -> bool:
        """Whether what a submodule reads is in its arguments and what is read of it later is in its results."""
        if call.module in self.flat:
            return False
        plain = Value | bool | int | float | str | torch.dtype | torch.device | None
        nests = [call.inputs, call.outputs]
        found = leaves(nests)
        if any(not isinstance(leaf, plain) for leaf in found) or self.graph.modules[call.module]._forward_hooks:
            return False
        if len(values(nests)) < sum(isinstance(leaf, Value) for leaf in found):
            return False
        ops, ran = self.graph.ops, self.graph.ops[call.start : call.stop]
        given, returned = ({v.index for v in values(nest)} for nest in nests)
        before = {v.index for op in ops[self.call.start : call.start] for v in op.outputs}
        before |= {v.index for v in self.inputs()}
        made = {v.index for op in ran for v in op.outputs} - before
        read = {v.index for op in ran for v in op.inputs}
        later = {v.index for op in ops[call.stop : self.call.stop] for v in op.inputs}
        later |= {v.index for v in values(self.call.outputs)}
        return not (read & before - given) and not (made & later - returned)


def values(nest: Any) -> list[Value]:
    """The values in nested tuples, lists and dictionaries (`leaves` finds those in dataclasses too)."""
    found: list[Value] = []
    map_tensors(found.append, nest, Value)
    return found


def inside(name: str, outer: str) -> bool:
    """Whether a module is inside another, by their names."""
    return name != outer and (not outer or name.startswith(f"{outer}."))


class Unchanged(Prediction):
    """A network from which nothing is gone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def kept(self, value: Value, dim: int) -> None:
        """All indices stay."""


def by_itself(module: nn.Module, recorded: Recording, *, on_meta: bool, sizes: Prediction) -> Graph:
    """Run a module in training mode on inputs of the shapes that it had in a recording.

    Raises
    ------
    NotPossible
        If it raises.
    """
    graph, error = run(module, _alike(module, recorded, sizes), on_meta=on_meta, training=True, closely=True)
    if error is not None:
        raise NotPossible(one_line(error))
    return graph


def check_state(module: nn.Module, recorded: Recording, alone: Recording) -> None:
    """Raise `NotPossible` if a module that runs in training mode changes attributes, which no operator shows."""
    try:
        found = changes(module, _alike(module, recorded, Unchanged(recorded.graph)), on_meta=alone.graph.on_meta)
    except Exception as error:
        raise NotPossible(one_line(error)) from error
    written = alone.written_out()
    if lost := sorted(f"self.{name}" for path, name in found if path in written):
        raise NotPossible(f"it keeps something for later in {', '.join(lost)}")


def follows(mine: Recording, other: Recording, own: Container[torch.dtype], dtype: torch.dtype) -> bool:
    """Whether the operators that are written out also run in a network in which `own` types have become another."""
    inputs = [next((v.dtype for v in r.inputs() if v.dtype.is_floating_point), None) for r in (mine, other)]

    def fits(a: Any, b: Any) -> bool:
        if isinstance(a, Value):
            kept = a.index in mine.graph.constants and a.dtype.is_floating_point  # a buffer, which is converted
            return bool(b.dtype == (dtype if kept or a.dtype in own else a.dtype))
        if isinstance(a, torch.dtype):
            return bool(b == (inputs[1] if a == inputs[0] else a))
        return bool(a == b)

    return _match(mine.own_ops(mine.written_out()), other.own_ops(mine.written_out()), fits)


def _match(ops: list[Op], others: list[Op], fits: Callable[[Any, Any], bool]) -> bool:
    """Whether the same operators were called, with arguments and results that fit in pairs."""
    both = [[x for op in one for x in (op.target, *leaves((op.args, op.kwargs, op.outputs)))] for one in (ops, others)]
    same = len(both[0]) == len(both[1])
    return same and all(type(a) is type(b) and fits(a, b) for a, b in zip(*both, strict=True))


def _alike(module: nn.Module, recorded: Recording, sizes: Prediction) -> Inputs:
    """What to call a module with, of the shapes that it had in a recording."""
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    given = {v.index: torch.zeros(sizes.shape(v), dtype=v.dtype, device=device) for v in recorded.inputs()}
    args, kwargs = map_tensors(lambda v: given[v.index], recorded.call.inputs, Value)
    return Inputs(tuple(args), kwargs, None)


def placed(recorded: Recording, alone: Graph, slices: Mapping[Key, Ids], names: Mapping[str, str]) -> Recording:
    """Return the recording of a module by itself as one in the network, with what is predicted of it.

    It reads the same inputs and parameters as in the network, where `names` gives the first name of a tensor by any of
    its names.

    Raises
    ------
    NotPossible
        If it takes no tensor, or other slices would have to be gone for it.
    """
    prediction, prefix = recorded.prediction, f"{recorded.name}." if recorded.name else ""
    walk, network, first = prediction.walk, prediction.graph, len(prediction.graph.values)
    if not alone.inputs:
        raise NotPossible("it takes no tensor")
    held, every = {v.name: v for v in network.values[: network.inputs[0].index]}, dict[int, Value]()
    for value in alone.values:
        name = names[prefix + value.name] if value.name else ""
        moved = replace(value, index=value.index + first, storage=value.storage + first, name=name)
        every[value.index] = held[name] if value.index < alone.inputs[0].index else moved
        network.values.append(moved)
    every |= {a.index: b for a, b in zip(values(alone.calls[-1].inputs), recorded.inputs(), strict=True)}

    def put(nest: Any) -> Any:
        return map_tensors(lambda value: every[value.index], nest, Value)

    def called(module: str) -> str:
        return f"{prefix}{module}".removesuffix(".")

    ops = [
        replace(
            op, index=k, module=called(op.module), args=put(op.args), kwargs=put(op.kwargs), outputs=put(op.outputs)
        )
        for k, op in enumerate(alone.ops, first + len(network.ops))
    ]
    calls = [
        replace(call, module=called(call.module), inputs=put(call.inputs), outputs=put(call.outputs))
        for call in alone.calls
    ]
    draws = {called(module) for module in alone.draws}
    graph = Graph(ops, list(every.values()), calls=calls, modules=network.modules, draws=draws)
    splits = {_kind(op): walk.splits[op.index] for op in network.ops if op.index in walk.splits}
    for op in ops:
        walk.splits.pop(op.index, None)
        walk.splits.update({op.index: splits[_kind(op)]} if _kind(op) in splits else {})
    follow(walk, graph)
    graph.constants = {every[index].index: t for index, t in alone.constants.items()}
    try:
        prediction.gone = gone(walk, slices)
    except CdlibError as error:
        raise NotPossible(str(error)) from error
    return Recording(prediction, graph, calls[-1], recorded.flat)


def _kind(op: Op) -> Any:
    return op.module, op.name, tuple(v.shape for v in (*op.inputs, *op.outputs))
