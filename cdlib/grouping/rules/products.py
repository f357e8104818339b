"""What products do to labels: matrix products, attention, embeddings, convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Axis, Labels
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk


@rule("mm", "bmm")
def matrix_product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[..., i, k] times [..., k, j]."""
    return product(walk, op, args)


def product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[..., i, k] times [..., k, j]."""
    values = [
        value for name in ("self", "mat1", "mat2", "batch1", "batch2") if isinstance(value := args.get(name), Value)
    ]
    a, b = values[-2:]
    walk.contract(op, a, -1, b, -2)
    batch = []
    for dim in range(len(op.outputs[0].shape) - 2):
        joined = walk.join([(walk.of(v).axes[dim], walk.of(v).why) for v in (a, b)], op)
        zero = np.logical_or.reduce([axis.zero for v in (a, b) if (axis := walk.of(v).axes[dim]) is not None])
        batch.append(None if joined is None else joined.known(zero))
    return Labels((*batch, walk.emit(a, -2), walk.emit(b, -1)), walk.of(a).why)


@rule("mv", "dot", "vdot")
def vector_product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[i, k] or [k] times [k]."""
    a, b = op.inputs
    walk.contract(op, a, -1, b, -1)
    return Labels((walk.emit(a, 0),) if len(a.shape) == 2 else (), walk.of(a).why)


@rule("addmm", "baddbmm")
def product_and_sum(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A product plus a tensor that is broadcast to it."""
    labels = product(walk, op, {key: value for key, value in args.items() if key != "self"})
    return _plus(walk, op, labels, args["self"])


def _plus(walk: Walk, op: Op, labels: Labels, added: Value) -> Labels:
    """The labels of a sum of a result with labels and a tensor; zero where both are."""
    axes: list[Axis | None] = []
    own, why = walk.of(added)
    shape = op.outputs[0].shape
    for back in range(len(shape), 0, -1):
        axis = labels.axes[-back]
        if len(own) < back or added.shape[-back] != shape[-back]:
            walk.spread(own[-back] if len(own) >= back else None, op)
            axes.append(None if axis is None else axis.known(False))
            continue
        other = own[-back]
        joined = walk.join([(axis, labels.why), (other, why)], op)
        zero = axis is not None and other is not None and axis.zero & other.zero
        axes.append(None if joined is None else joined.known(zero))
    return Labels(tuple(axes), labels.why)


@rule("scaled_dot_product_attention")
def attention(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """query [..., L, d], key [..., M, d], value [..., M, e]: [..., L, e]."""
    query, key, value = args["query"], args["key"], args["value"]
    walk.contract(op, query, -1, key, -1)
    out, batch = op.outputs[0], []
    for operand in (key, value):
        walk.freeze(walk.of(operand), op.index, "is a position that attention sums over", [len(operand.shape) - 2])
    if isinstance(mask := args.get("attn_mask"), Value):
        walk.freeze(walk.of(mask), op.index, "is in the mask of attention")
    for back in range(len(out.shape), 2, -1):
        here = []
        for operand in (query, key, value):
            if len(operand.shape) >= back:
                if operand.shape[-back] == out.shape[-back]:
                    here.append((walk.of(operand).axes[-back], walk.of(operand).why))
                else:
                    walk.freeze(walk.of(operand), op.index, "is shared by several heads", [len(operand.shape) - back])
        joined = walk.join(here, op)
        head = walk.of(value).axes[-back] if value.shape[-back:][:1] == out.shape[-back:][:1] else None
        batch.append(None if joined is None else joined.known(False if head is None else head.zero))
    rows = walk.emit(query, -2)
    return Labels((*batch, rows and rows.known(False), walk.emit(value, -1)), walk.of(query).why)


@rule("glu")
def glu(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The first half of a dimension times the sigmoid of the second half."""
    axes, why = walk.of(op.inputs[0])
    dim = args["dim"] % len(axes)
    if (axis := axes[dim]) is None:
        return Labels(axes, why)
    half = len(axis.ids) // 2
    walk.ledger.couple(axis.ids[:half], axis.ids[half:], op.index)
    return Labels((*axes[:dim], axis.take(slice(half)), *axes[dim + 1 :]), why)


@rule("embedding")
def embedding(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Rows of a table [positions, channels]."""
    table, indices = args["weight"], args["indices"]
    walk.freeze(walk.of(table), op.index, f"{STRUCTURAL}: positions of a table", [0])
    return Labels((*walk.of(indices).axes, walk.emit(table, 1)), walk.of(indices).why)


@rule("convolution")
def convolution(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[N, C, ...] with weights [O, C / groups, ...] or, transposed, [C, O / groups, ...]."""
    x, weight, groups = args["input"], args["weight"], args["groups"]
    axes = walk.of(x).axes
    for value in (x, weight):
        walk.freeze(
            walk.of(value), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", range(2, len(value.shape))
        )
    into, out = (0, 1) if args["transposed"] else (1, 0)
    channels = x.shape[1]
    if groups == 1:
        walk.contract(op, x, 1, weight, into)
        result = walk.emit(weight, out)
    elif groups == channels:
        result = _depthwise(walk, op, x, weight, bool(args["transposed"]))
    else:
        result = _grouped(walk, op, x, weight, groups, bool(args["transposed"]))
    rest = [None] * (len(op.outputs[0].shape) - 2)
    labels = Labels((axes[0], result, *rest), walk.of(x).why)
    if isinstance(bias := args["bias"], Value):
        own, why = walk.of(bias)
        joined = walk.join([(result, walk.of(weight).why), (own[0], why)], op)
        zero = result is not None and own[0] is not None and result.zero & own[0].zero
        first = None if axes[0] is None else axes[0].known(False)
        labels = Labels((first, None if joined is None else joined.known(zero), *rest), labels.why)
    return labels


def _depthwise(walk: Walk, op: Op, x: Value, weight: Value, transposed: bool) -> Axis | None:
    """Every channel has filters of its own: it vanishes with them."""
    axis, own = walk.of(x).axes[1], walk.of(weight)
    times = op.outputs[0].shape[1] // x.shape[1]
    if transposed:
        filters = walk.join([(axis, walk.of(x).why), (walk.emit(weight, 0), own.why)], op)
        walk.freeze(own, op.index, "is the number of filters per channel", [1])
        if filters is None:
            return None
        zero = filters.zero if own.axes[0] is None else own.axes[0].zero
        zero = zero | axis.zero if axis is not None else zero
        return Axis(filters.ids.repeat(times), zero.repeat(times))
    repeated = None if axis is None else Axis(axis.ids.repeat(times), axis.zero.repeat(times))
    filters = walk.emit(weight, 0)
    walk.freeze(own, op.index, "is the one channel that a filter reads", [1])
    joined = walk.join([(repeated, walk.of(x).why), (filters, own.why)], op)
    if joined is None:
        return None
    zeros = [a.zero for a in (repeated, filters) if a is not None]
    return (filters or joined).known(np.logical_or.reduce(zeros))


def _grouped(walk: Walk, op: Op, x: Value, weight: Value, groups: int, transposed: bool) -> Axis | None:
    """The same local indices must vanish in every group, on both sides."""
    axis, own = walk.of(x).axes[1], walk.of(weight)
    local = across(walk, op, axis, groups)
    if not transposed:
        walk.contract_axes(op, (x, local), (weight, own.axes[1]))
        result = walk.emit(weight, 0)
        if (rows := across(walk, op, result, groups)) is None or result is None:
            return None
        return Axis(np.tile(rows.ids, groups), result.zero)
    walk.contract_axes(op, (x, axis), (weight, own.axes[0]))
    across(walk, op, own.axes[0], groups)
    result = walk.emit(weight, 1)
    return None if result is None else Axis(np.tile(result.ids, groups), np.tile(result.zero, groups))


def across(walk: Walk, op: Op, axis: Axis | None, groups: int) -> Axis | None:
    """Couple the indices that are at the same place in each group, and return the labels of the first group."""
    if axis is None:
        return None
    ids = axis.ids.reshape(groups, -1)
    for other in ids[1:]:
        walk.ledger.couple(ids[0], other, op.index)
    return Axis(ids[0], np.asarray(axis.zero.reshape(groups, -1).all(axis=0)))
