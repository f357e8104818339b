"""Walk through a captured network and carry labels from operator to operator, as often as its reshapes take.

A walk knows nothing about models, only about operators: a rule per kind of operator (`cdlib.grouping.rules`) says
which labels the outputs carry and what is to be noted in the `Ledger`. Whatever has no rule freezes the labels that it
meets.

When a reshape splits a labelled dimension, the result must stay rectangular, so either the inner or the outer part
carries the labels and they are coupled across the other one: [heads * d] becomes [heads, d] with d removable, and
[C * r * r] becomes [C, r, r] with C removable. The sizes do not tell which; the first walk takes the innermost
dimension and, where that freezes the labels, further walks try the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdlib.graph import Graph
from cdlib.grouping.labels import Flags, Labels, unlabelled
from cdlib.grouping.ops import arguments, uses
from cdlib.grouping.rules import reductions, rule_for, slicing
from cdlib.grouping.rules.registry import no_rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk

MAKERS = {"expand", "repeat", "tile", "broadcast_to", "constant_pad_nd"}
MAKERS |= {"zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"}
"""Operators whose results have labels although their operands have none."""

RUNS_ON = {no_rule, reductions.reduction, slicing.ordered}
"""Rules that keep labels for what the numbers mean and not since the operator could not run on fewer."""


def choose_reshapes(graph: Graph, training: Graph | None = None) -> Walk:
    """Walk through a network, as often as it takes to split dimensions well.

    A split is good if it freezes few labels and, then, if few of those left could not be removed when zero. Splits by
    the same code, of the same shapes, are decided together.
    """
    done = _with_roles(graph, {}, training)
    cost, bad = _cost(done)
    for alike in _alike(done):
        candidates, _ = done.choices.get(alike[0], (0, None))
        for choice in range(1, candidates):
            if not any(bad[done.choices[index][1]].any() for index in alike if index in done.choices):
                break
            other = _with_roles(graph, {**done.splits, **dict.fromkeys(alike, choice)}, training)
            if (now := _cost(other))[0] < cost:
                done, (cost, bad) = other, now
    return done


def _alike(done: Walk) -> list[list[int]]:
    """The operators that split a dimension, those of the same class of modules and the same shapes together."""
    ops, modules = {op.index: op for op in done.graph.ops}, done.graph.modules
    found: dict[Any, list[int]] = {}
    for index in done.choices:
        op = ops.get(index)  # none: of the training run
        kind = (type(modules[op.module]), op.inputs[0].shape, op.outputs[0].shape) if op else index
        found.setdefault(kind, []).append(index)
    return list(found.values())


def _cost(done: Walk) -> tuple[tuple[int, int], Flags]:
    """How many labels are frozen, and noticed; and for every label whether another split might be better for it."""
    of = done.ledger.components()
    frozen, structural, noticed = np.zeros((3, done.ledger.count), dtype=bool)
    for problem in done.ledger.frozen:
        frozen[of[problem.ids]] = True
        if problem.reason.startswith(STRUCTURAL):
            structural[of[problem.ids]] = True
    for problem in done.ledger.noticed:
        noticed[of[problem.ids]] = True
    counts = (int(frozen[of].sum()), int((noticed & ~frozen)[of].sum()))
    return counts, (structural | (noticed & ~frozen))[of]


def _with_roles(graph: Graph, splits: dict[int, int], training: Graph | None) -> Walk:
    """Walk; and again, knowing the input sides of layers, if a rule asked whether a weight is zeroed."""
    done = _walked(Walk(graph, splits, training))
    if not done.asked_weights:
        return done
    made, read = done.ledger.roles()
    return _walked(Walk(graph, splits, training, read - made))


def _walked(walk: Walk) -> Walk:
    """The same walk when it is done, and one in training mode with the same ledger, if that is recorded.

    The operators of the training run are numbered on after the others, so that each has a split of its own.
    """
    follow(walk, walk.graph)
    if walk.training is not None:
        noticed, first = len(walk.ledger.noticed), len(walk.graph.ops)
        other = Walk(walk.training, {index - first: n for index, n in walk.splits.items()}, None, walk.consumed_only)
        other.ledger = walk.ledger
        follow(other, walk.training)
        walk.choices |= {index + first: found for index, found in other.choices.items()}
        walk.asked_weights |= other.asked_weights
        del walk.ledger.noticed[noticed:]
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
