"""Walk through a captured network and carry labels from operator to operator.

The walk knows nothing about models, only about operators: a rule per kind of operator (`cdlib.grouping.rules`) says
which labels the outputs carry and what is to be noted in the `Ledger`. Whatever has no rule freezes the labels that it
meets.
"""

from __future__ import annotations

from cdlib.graph import Graph, moved_after
from cdlib.grouping.labels import Labels, unlabelled
from cdlib.grouping.ops import arguments, uses
from cdlib.grouping.rules import reductions, rule_for, slicing
from cdlib.grouping.rules.registry import no_rule
from cdlib.grouping.walk_state import Walk

MAKERS = {"expand", "repeat", "tile", "broadcast_to", "constant_pad_nd"}
MAKERS |= {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"}
"""Operators whose results have labels although their operands have none."""

RUNS_ON = {no_rule, reductions.reduction, slicing.ordered}
"""Rules that keep labels for what the numbers mean and not since the operator could not run on fewer."""


def propagate(
    graph: Graph,
    splits: dict[int, int] | None = None,
    consumed_only: set[tuple[str, int]] | None = None,
    training: Graph | None = None,
) -> Walk:
    """Walk once through a network, with the arguments of `Walk`."""
    walk = Walk(graph, splits, consumed_only, training)
    follow(walk, graph)
    if training is not None:
        found = len(walk.ledger.noticed)
        follow(walk, moved_after(graph, training))
        del walk.ledger.noticed[found:]
    return walk


def follow(walk: Walk, graph: Graph) -> None:
    """Apply the rule of every operator. One whose result nobody uses has to run on, but no zero can change anything."""
    ledger, used = walk.ledger, walk.uses if graph is walk.graph else uses(graph)
    for op in graph.ops:
        frozen, noticed, lost = len(ledger.frozen), len(ledger.noticed), len(ledger.lost)
        if op.name in MAKERS or any(walk.labelled(value) for value in op.inputs):
            rule = rule_for(op)
            outputs = rule(walk, op, arguments(op))
            results = [outputs] if isinstance(outputs, Labels) else outputs
            if op.index not in used.ops:
                del ledger.noticed[noticed:], ledger.lost[lost:]
            if op.index not in used.running and rule in RUNS_ON:
                del ledger.frozen[frozen:]
        else:
            why = walk.of(op.inputs[0]).why if op.inputs else "meets a constant of fixed size"
            results = [unlabelled(value.shape, why) for value in op.outputs]
        for value, labels in zip(op.outputs, results, strict=True):
            walk.assign(value, labels, op)
    for value in graph.outputs:
        walk.freeze(walk.of(value), walk.graph.ops[-1].index + 1 if walk.graph.ops else 0, "reaches the output")
