"""What operators that work element by element do to labels.

Whether such an operator turns zeros into zeros is not listed but tried, on a few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from cdlib.graph import Op, Value, map_tensors, tensors
from cdlib.grouping.labels import Axis, Flags, Labels, unlabelled
from cdlib.grouping.ops import is_weight
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import Walk


@rule("pointwise")
@rule("hardswish", "hardswish_", "hardtanh", "hardtanh_", "relu6", "prelu", "_prelu_kernel", "rrelu_with_noise")
@rule("celu", "selu", "softplus", "hardshrink", "softshrink", "threshold", "masked_fill", "masked_fill_", "where")
@rule("mish", "mish_", "leaky_relu", "leaky_relu_", "log_sigmoid_forward", "clamp", "clamp_", "glu_jvp", "lerp")
def pointwise(walk: Walk, op: Op, args: dict[str, Any]) -> Labels | list[Labels]:
    """Arithmetic, comparisons and activations, with broadcasting."""
    labels = broadcast(walk, op, op.inputs, op.outputs[0].shape)
    return [labels if value.shape == op.outputs[0].shape else unlabelled(value.shape) for value in op.outputs]


def broadcast(walk: Walk, op: Op, operands: Sequence[Value], shape: tuple[int, ...]) -> Labels:
    """Couple the operands dimension by dimension, aligned at the last one; try whether zeros give zero."""
    walk.asked_weights |= len(shape) > 1 and all(is_weight(value) for value in operands)
    axes: list[Axis | None] = []
    for size, *found in zip(shape, *(walk.aligned(value, shape, op) for value in operands), strict=True):
        # parameters first, since they are what makes channels, not a mask of it
        order = sorted(zip(operands, found, strict=True), key=lambda pair: pair[0].kind != "parameter")
        joined = walk.join([here for _, here in order if here is not None], op)
        flags = [here[0].zero if here and here[0] else np.zeros(size, dtype=bool) for here in found]
        axes.append(joined and joined.known(_zeros(walk, op, operands, joined, flags)))
    return Labels(tuple(axes), next((why for value in operands if (why := walk.of(value).why)), ""))


def _zeros(walk: Walk, op: Op, operands: Sequence[Value], axis: Axis, flags: list[Flags]) -> Flags:
    """Where the result is zero, given where the operands are; positions where zero is lost are noted."""
    codes = sum(flag.astype(np.int64) << k for k, flag in enumerate(flags))
    zero = np.zeros(len(axis.ids), dtype=bool)
    for code in np.unique(codes):
        if code and is_zero(op, [bool(code >> k & 1) for k in range(len(flags))]):
            zero |= codes == code
    lost = (codes > 0) & ~zero
    walk.ledger.lose(axis.ids[lost], op.index, walk.place(op))
    return zero


SAMPLES = (-1.7, -0.4, 0.3, 2.1, -0.9, 1.2)


class _Given(NamedTuple):
    """Stands for an operand: whether it is zero, and its type."""

    zero: bool
    dtype: torch.dtype


_TRIED: dict[tuple[Any, str], bool] = {}


def is_zero(op: Op, zero: list[bool]) -> bool:
    """Whether an operator gives zeros when some of its operands are zero, found by trying."""
    operands = map(_Given, zero, (value.dtype for value in op.inputs))
    given = map_tensors(lambda value: next(operands), (op.args, op.kwargs), Value)
    key = (op.target, repr(given))
    if key not in _TRIED:
        _TRIED[key] = _try(op.target, *given)
    return _TRIED[key]


def _try(target: Any, args: Any, kwargs: Any) -> bool:
    count = iter(range(10**6))

    def tensor(given: _Given) -> torch.Tensor:
        numbers = np.roll(SAMPLES, next(count))
        numbers = np.maximum(numbers, 0) if given.dtype == torch.bool else numbers  # true and false
        return torch.tensor(numbers * (not given.zero)).to(given.dtype)

    try:
        with torch.no_grad():
            result = target(*map_tensors(tensor, args, _Given), **map_tensors(tensor, kwargs, _Given))
    except Exception:
        return False
    return all(bool((part == 0).all()) for part in tensors(result))
