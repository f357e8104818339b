"""What convolutions do to labels: plain, depthwise and grouped ones, and each of them transposed."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Axis, Labels
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk


@rule("convolution")
def convolution(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[N, C, ...] with weights [O, C / groups, ...] or, transposed, [C, O / groups, ...]."""
    x, weight, groups = args["input"], args["weight"], args["groups"]
    samples, why = walk.of(x).axes[0], walk.of(x).why
    for value in (x, weight):
        positions = range(2, len(value.shape))
        walk.freeze(walk.of(value), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", positions)
    into, out = (0, 1) if args["transposed"] else (1, 0)
    if groups == 1:
        walk.contract(op, x, 1, weight, into)
        result = walk.emit(weight, out)
    elif groups == x.shape[1]:
        result = _depthwise(walk, op, x, weight, bool(args["transposed"]))
    else:
        result = _grouped(walk, op, x, weight, groups, bool(args["transposed"]))
    if isinstance(bias := args["bias"], Value):
        shifts = walk.of(bias)
        result = walk.join([(result, walk.of(weight).why), (shifts.axes[0], shifts.why)], op)
        samples = samples and samples.known(False)
    return Labels((samples, result, *[None] * (len(op.outputs[0].shape) - 2)), why)


def _depthwise(walk: Walk, op: Op, x: Value, weight: Value, transposed: bool) -> Axis | None:
    """Every channel has filters of its own: it vanishes with them."""
    axis, own = walk.of(x).axes[1], walk.of(weight)
    times = op.outputs[0].shape[1] // x.shape[1]
    if not transposed:
        axis = axis and axis.each(lambda part: part.repeat(times))
    filters = walk.emit(weight, 0)
    second = "number of filters per channel" if transposed else "one channel that a filter reads"
    walk.freeze(own, op.index, f"is the {second}", [1])
    joined = walk.join([(filters, own.why), (axis, walk.of(x).why)], op, either=True)
    return joined and joined.each(lambda part: part.repeat(times)) if transposed else joined


def _grouped(walk: Walk, op: Op, x: Value, weight: Value, groups: int, transposed: bool) -> Axis | None:
    """The same local indices must vanish in every group, on both sides."""
    axis, own = walk.of(x).axes[1], walk.of(weight)
    local = walk.across(op, axis, groups)
    if not transposed:
        walk.contract_axes(op, (x, local), (weight, own.axes[1]))
        result = walk.emit(weight, 0)
        if (rows := walk.across(op, result, groups)) is None or result is None:
            return None
        return Axis(np.tile(rows.ids, groups), result.zero)
    walk.contract_axes(op, (x, axis), (weight, own.axes[0]))
    walk.across(op, own.axes[0], groups)
    result = walk.emit(weight, 1)
    return result and result.each(lambda part: np.tile(part, groups))
