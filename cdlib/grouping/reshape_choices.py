"""Walk through a network as often as it takes to find how its reshapes split dimensions.

When a reshape splits a labelled dimension, the result must stay rectangular, so either the inner or the outer part
carries the labels and they are coupled across the other one: [heads * d] becomes [heads, d] with d removable, and
[C * r * r] becomes [C, r, r] with C removable. The sizes do not tell which; the first walk takes the innermost
dimension and, where that freezes the labels, further walks try the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cdlib.graph import Graph
from cdlib.grouping.labels import Flags
from cdlib.grouping.propagation import propagate
from cdlib.grouping.walk_state import STRUCTURAL, Walk


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
        op = ops.get(index)  # none: of the run in training mode
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
    done = propagate(graph, splits, None, training)
    if not done.asked_weights:
        return done
    made, read = done.ledger.roles()
    return propagate(graph, splits, read - made, training)
