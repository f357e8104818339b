"""Walk through a captured network and carry labels from operator to operator.

The walk knows nothing about models, only about operators: a rule per kind of operator (`cdlib.grouping.rules`) says
which labels the outputs carry and what is to be noted in the `Ledger`. Whatever has no rule freezes the labels that it
meets.
"""

from __future__ import annotations

from cdlib.graph import Graph, moved_after
from cdlib.grouping.labels import Labels
from cdlib.grouping.ops import arguments
from cdlib.grouping.rules import rule_for
from cdlib.grouping.walk_state import Walk

MAKERS = {"expand", "repeat", "tile", "broadcast_to", "constant_pad_nd"}
MAKERS |= {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"}
"""Operators whose results have labels although their operands have none."""


def propagate(
    graph: Graph,
    splits: dict[int, int] | None = None,
    consumed_only: set[tuple[str, int]] | None = None,
    training: Graph | None = None,
) -> Walk:
    """Walk once through a network, with the arguments of `Walk`."""
    walk = Walk(graph, splits, consumed_only, training)
    _follow(walk, graph)
    if training is not None:
        found = len(walk.ledger.noticed)
        _follow(walk, moved_after(graph, training))
        del walk.ledger.noticed[found:]
    return walk


def _follow(walk: Walk, graph: Graph) -> None:
    for op in graph.ops:
        if op.name in MAKERS or any(walk.labelled(value) for value in op.inputs):
            outputs = rule_for(op)(walk, op, arguments(op))
            results = [outputs] if isinstance(outputs, Labels) else outputs
        else:
            why = walk.of(op.inputs[0]).why if op.inputs else "meets a constant of fixed size"
            results = [Labels((None,) * len(v.shape), why) for v in op.outputs]
        for value, labels in zip(op.outputs, results, strict=True):
            walk.assign(value, labels, op)
    for value in graph.outputs:
        walk.freeze(walk.of(value), walk.graph.ops[-1].index + 1 if walk.graph.ops else 0, "reaches the output")
