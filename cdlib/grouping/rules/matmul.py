"""What matrix products do to labels, those of attention and of embeddings too."""

from __future__ import annotations

from typing import Any

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Labels
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk


@rule("mm", "bmm")
def product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[..., i, k] times [..., k, j]."""
    a, b = op.inputs[-2:]
    walk.contract(op, a, -1, b, -2)
    batch = [
        walk.join([(walk.of(v).axes[dim], walk.of(v).why) for v in (a, b)], op, either=True)
        for dim in range(len(op.outputs[0].shape) - 2)
    ]
    return Labels((*batch, walk.emit(a, -2), walk.emit(b, -1)), walk.of(a).why)


@rule("mv", "dot", "vdot")
def vector_product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[i, k] or [k] times [k]."""
    a, b = op.inputs
    walk.contract(op, a, -1, b, -1)
    return Labels((walk.emit(a, 0),) if len(a.shape) == 2 else (), walk.of(a).why)


@rule("addmm", "baddbmm")
def product_and_sum(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A product plus a tensor that is broadcast to it: zero where both are."""
    labels = product(walk, op, args)
    added = walk.aligned(args["self"], op.outputs[0].shape, op)
    axes = (
        axis and axis.known(False) if here is None else walk.join([(axis, labels.why), here], op)
        for axis, here in zip(labels.axes, added, strict=True)
    )
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


@rule("embedding")
def embedding(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Rows of a table [positions, channels]."""
    table, indices = args["weight"], args["indices"]
    walk.freeze(walk.of(table), op.index, f"{STRUCTURAL}: positions of a table", [0])
    return Labels((*walk.of(indices).axes, walk.emit(table, 1)), walk.of(indices).why)
