"""What is asked about operators: their named arguments, and whether anything depends on their results."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from cdlib.graph import Graph, Op, Value


def is_weight(value: Value) -> bool:
    """Whether a value does not depend on the network's input."""
    return value.kind in ("parameter", "buffer", "constant")


@lru_cache(maxsize=4096)
def _parameters(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments)


def arguments(op: Op) -> dict[str, Any]:
    """What an operator was called with, by the names of its schema, defaults filled in."""
    named = _parameters(op.target)
    given = {name: value for (name, _), value in zip(named, op.args, strict=False)}
    return {**dict(named), **given, **op.kwargs}


class Uses(NamedTuple):
    """What becomes of the results of a run, by their indices."""

    values: set[int]
    """Those that an output depends on, or what outlives the run: a tensor of before that is written to, a number handed
    to Python."""
    ops: set[int]  #: The operators that make them.
    running: set[int]  #: Those and the ones that some operator with weights depends on.


def uses(graph: Graph) -> Uses:
    """Find which operators of a run matter; a hook that logs a mean, for example, does not."""
    held = {value.index for value in graph.values if value.name}
    with_weights = set()
    for op in graph.ops:
        if any(value.index in held for value in op.inputs):
            with_weights.add(op.index)
            held.update(value.index for value in op.outputs if value.kind == "constant")
    values, ops = _leading_to(graph, set())
    return Uses(values, ops, _leading_to(graph, with_weights)[1])


def _leading_to(graph: Graph, ends: set[int]) -> tuple[set[int], set[int]]:
    """The values and operators that the outputs, what outlives the run, and some operators depend on."""
    before = [value for value in graph.values if value.kind in ("input", "parameter", "buffer")]
    values = {value.index for value in graph.outputs}
    storages = {value.storage for value in (*graph.outputs, *before)}
    storages |= {graph.values[index].storage for index in graph.constants}
    ops = set()
    for op in reversed(graph.ops):
        made = any(value.index in values for value in op.outputs) or not op.outputs
        written = op.target._schema.is_mutable and any(value.storage in storages for value in op.outputs)
        if made or written or op.index in ends:
            ops.add(op.index)
            values.update(value.index for value in op.inputs)
            storages.update(value.storage for value in op.inputs)
    return values, ops
