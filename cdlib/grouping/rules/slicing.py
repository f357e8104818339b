"""What operators that take tensors apart or put them together do to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Axis, Labels
from cdlib.grouping.rules.pointwise import broadcast
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk


@rule("slice")
def slice_(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A range of one dimension."""
    found = walk.of(op.inputs[0])
    dim, step = args["dim"] % len(found.axes), args["step"]
    if (axis := found.axes[dim]) is None:
        return found
    if step not in (None, 1):
        walk.ledger.freeze(axis.ids, op.index, f"{STRUCTURAL}: {walk.place(op)} takes every {step}th of it")
    return found.replaced(dim, axis.take(slice(args["start"], args["end"], step)))


@rule("select")
def select(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """One index of a dimension: it has to stay."""
    found = walk.of(op.inputs[0])
    dim = args["dim"] % len(found.axes)
    if (axis := found.axes[dim]) is not None:
        walk.ledger.freeze(axis.ids[[args["index"]]], op.index, f"is picked by its number by {walk.place(op)}")
    return found.replaced(dim)


@rule("unbind")
def unbind(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Every index of a dimension by itself."""
    found = walk.of(op.inputs[0])
    dim = args["dim"] % len(found.axes)
    walk.freeze(found, op.index, f"{STRUCTURAL}: {walk.place(op)} takes it apart", [dim])
    return [found.replaced(dim)] * len(op.outputs)


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def split(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Consecutive ranges of a dimension."""
    found = walk.of(op.inputs[0])
    dim = args["dim"] % len(found.axes)
    start, result, whole = 0, [], found.axes[dim]
    for value in op.outputs:
        result.append(found.replaced(dim, whole and whole.take(slice(start, start + value.shape[dim]))))
        start += value.shape[dim]
    return result


@rule("glu")
def glu(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The first half of a dimension times the sigmoid of the second half."""
    found = walk.of(op.inputs[0])
    dim = args["dim"] % len(found.axes)
    if (axis := found.axes[dim]) is None:
        return found
    half = len(axis.ids) // 2
    walk.ledger.couple(axis.ids[:half], axis.ids[half:], op.index)
    return found.replaced(dim, axis.take(slice(half)))


@rule("cat", "concat", "concatenate")
def cat(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Tensors one after the other along a dimension."""
    out = op.outputs[0]
    parts = [value for value in args["tensors"] if value.shape != (0,)]
    found = [walk.of(value) for value in parts]
    along = args["dim"] % len(out.shape)
    axes: list[Axis | None] = []
    for dim in range(len(out.shape)):
        here = [(labels.axes[dim], labels.why) for labels in found]
        if dim != along:
            axes.append(walk.join(here, op))
        elif all(axis is None for axis, _ in here):
            axes.append(None)
        else:
            whole = [
                axis or Axis(walk.ledger.fixed(value.shape[dim], why), np.zeros(value.shape[dim], dtype=bool))
                for (axis, why), value in zip(here, parts, strict=True)
            ]
            axes.append(Axis(np.concatenate([a.ids for a in whole]), np.concatenate([a.zero for a in whole])))
    return Labels(tuple(axes), found[0].why)


@rule("stack")
def stack(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Tensors of the same shape side by side in a new dimension."""
    labels = broadcast(walk, op, args["tensors"], args["tensors"][0].shape)
    dim = args["dim"] % len(op.outputs[0].shape)
    return Labels((*labels.axes[:dim], None, *labels.axes[dim:]), labels.why)


@rule("topk", "unfold", "index_select", "gather", "repeat_interleave")
def picked(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Operators that name some positions of a dimension, or their number: it has to stay, and have as many."""
    return ordered(walk, op, args)


@rule("flip", "roll", "cumsum", "cumprod", "cummax", "cummin", "sort", "_fft_r2c", "_fft_c2r", "_fft_c2c")
def ordered(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Operators for which the order of a dimension counts: it has to stay, the others do not matter."""
    source = op.inputs[0]
    found = walk.of(source)
    rank = len(found.axes)
    named = args.get("dim", args.get("dims", args.get("dimension")))
    if named is None or op.name == "gather":
        named = range(rank)
    dims = [dim % rank for dim in ([named] if isinstance(named, int) else named)]
    walk.freeze(found, op.index, f"{STRUCTURAL}: {walk.place(op)} depends on its order", dims)
    for other in op.inputs[1:]:
        walk.freeze(walk.of(other), op.index, f"is an index in {walk.place(op)}")
    new = (None,) * (len(op.outputs[0].shape) - rank)
    axes = tuple(None if dim in dims else axis for dim, axis in enumerate(found.axes))
    labels = Labels(axes + new, found.why)
    return [labels, *[labels.not_zero()] * (len(op.outputs) - 1)]  # sort and topk return the places of the numbers too


@rule("index", "index_put_", "index_put", "_unsafe_index")
def index(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Positions named by tensors of numbers or flags; the other dimensions pass."""
    source, out = op.inputs[0], op.outputs[0]
    found = walk.of(source)
    covered: list[int] = []
    at = 0
    for each in args["indices"]:
        wide = len(each.shape) if each is not None and each.dtype in (torch.bool, torch.uint8) else 1
        if each is not None:
            covered += range(at, at + wide)
            walk.freeze(walk.of(each), op.index, f"is an index in {walk.place(op)}")
        at += wide
    walk.freeze(found, op.index, f"{STRUCTURAL}: positions picked by {walk.place(op)}", covered)
    free = [dim for dim in range(len(found.axes)) if dim not in covered]
    if op.name.startswith("index_put"):
        return _written(walk, op, args["values"], [dim for dim in free if not covered or dim > covered[-1]], free)
    new = len(out.shape) - len(free)
    adjacent = covered == list(range(covered[0], covered[-1] + 1)) if covered else True
    before = [dim for dim in free if adjacent and covered and dim < covered[0]]
    after = [dim for dim in free if dim not in before]
    axes = [*(found.axes[d] for d in before), *[None] * new, *(found.axes[d] for d in after)]
    return Labels(tuple(axes), found.why)


def _written(walk: Walk, op: Op, values: Value, after: list[int], free: list[int]) -> Labels:
    """Labels of a tensor after `values` were written to some positions: those of the dimensions `after` them pass."""
    into, given = walk.of(op.inputs[0]), walk.of(values)
    reason = f"is written by {walk.place(op)}"
    axes = list(into.axes)
    walk.freeze(into, op.index, reason, [dim for dim in free if dim not in after])
    walk.freeze(given, op.index, reason, range(max(len(given.axes) - len(after), 0)))
    for back, dim in enumerate(reversed(after), start=1):
        here, size = (given.axes[-back], values.shape[-back]) if back <= len(given.axes) else (None, 1)
        axis = axes[dim]
        if size != op.inputs[0].shape[dim]:
            walk.freeze(given, op.index, reason, [len(given.axes) - back] if here is not None else [])
            axes[dim] = axis and axis.known(False)
            continue
        axes[dim] = walk.join([(axis, into.why), (here, given.why)], op)
    return Labels(tuple(axes), into.why)
