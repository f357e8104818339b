"""What operators that compute do to labels: element by element, products, normalisation, reductions.

A rule takes the walk, an operator and its named arguments, and returns the labels of its outputs. `rule_for` finds the
rule; those of operators that only move elements are in `cdlib.pruning.moving`. Whether an operator turns zeros into
zeros is not listed but tried, on a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cdlib.graph import Op, Value, map_tensors, tensors
from cdlib.pruning.labels import Axes, Axis, Flags, Labels, Problem
from cdlib.pruning.propagation import STRUCTURAL, Walk, is_pointwise, is_weight

Rule = Callable[[Walk, Op, dict[str, Any]], Labels | list[Labels]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a function as the rule of some operators."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def rule_for(op: Op) -> Rule:
    """The rule of an operator, in place or not; that for unknown operators if there is none."""
    import cdlib.pruning.moving  # noqa: F401  (enters its rules)

    name = op.name
    if name in RULES:
        return RULES[name]
    if is_pointwise(op.target):
        return pointwise
    return RULES.get(name.rstrip("_"), no_rule)


def no_rule(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """An operator about which nothing is known: everything that it touches stays as it is."""
    why = f"meets the operator {op.target}, for which there is no rule"
    for value in op.inputs:
        walk.freeze(walk.of(value), op.index, why)
        if value.kind == "parameter" and len(value.shape) > 1:  # a layer all the same: its rows are a group
            walk.emit(value, 0)
    return [unlabelled(value, why) for value in op.outputs]


def unlabelled(value: Value, why: str = "meets a dimension of fixed size") -> Labels:
    """The labels of a tensor that cannot change."""
    return Labels((None,) * len(value.shape), why)


# Element by element.


@rule("hardswish", "hardswish_", "hardtanh", "hardtanh_", "relu6", "prelu", "_prelu_kernel", "rrelu_with_noise")
@rule("celu", "selu", "softplus", "hardshrink", "softshrink", "threshold", "masked_fill", "masked_fill_", "where")
@rule("mish", "mish_", "leaky_relu", "leaky_relu_", "log_sigmoid_forward", "clamp", "clamp_", "glu_jvp", "lerp")
def pointwise(walk: Walk, op: Op, args: dict[str, Any]) -> Labels | list[Labels]:
    """Arithmetic, comparisons and activations, with broadcasting."""
    labels = broadcast(walk, op, op.inputs, op.outputs[0].shape)
    return [labels if value.shape == op.outputs[0].shape else unlabelled(value) for value in op.outputs]


def broadcast(walk: Walk, op: Op, operands: Sequence[Value], shape: tuple[int, ...]) -> Labels:
    """Couple the operands dimension by dimension, aligned at the last one; try whether zeros give zero."""
    found = [walk.of(value) for value in operands]
    if len(shape) > 1 and all(is_weight(value) for value in operands):
        walk.asked_weights = True
    axes: list[Axis | None] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        here: list[tuple[Axis | None, str]] = []
        flags: list[Flags] = []
        for value, (own, why) in zip(operands, found, strict=True):
            axis = own[-back] if len(own) >= back else None
            same = len(own) >= back and value.shape[-back] == size
            if same and value.kind == "parameter":  # first, since it is what makes channels, not a mask of it
                here.insert(0, (axis, why))
            elif same:
                here.append((axis, why))
            elif axis is not None:
                walk.ledger.freeze(axis.ids, op.index, f"is spread over several positions by {walk.place(op)}")
            none = axis is None or not same
            flags.append(np.zeros(size, dtype=bool) if axis is None or none else axis.zero)
        joined = walk.join(here, op)
        axes.append(None if joined is None else joined.known(_zeros(walk, op, operands, joined, flags)))
    return Labels(tuple(axes), next((why for _, why in found if why), ""))


def _zeros(walk: Walk, op: Op, operands: Sequence[Value], axis: Axis, flags: list[Flags]) -> Flags:
    """Where the result is zero, given where the operands are; positions where zero is lost are noted."""
    codes = sum(flag.astype(np.int64) << k for k, flag in enumerate(flags))
    zero = np.zeros(len(axis.ids), dtype=bool)
    for code in np.unique(codes):
        if code and is_zero(op, [bool(code >> k & 1) for k in range(len(flags))]):
            zero |= codes == code
    lost = (codes > 0) & ~zero
    if lost.any():
        walk.ledger.lost.append(Problem(axis.ids[lost], op.index, walk.place(op)))
    return zero


_SAMPLES = (-1.7, -0.4, 0.3, 2.1, -0.9, 1.2)


def is_zero(op: Op, zero: list[bool]) -> bool:
    """Whether an operator gives zeros when some of its operands are zero, found by trying."""
    operands = iter(zero)
    kinds = iter(value.dtype for value in op.inputs)
    args, kwargs = map_tensors(lambda value: _Given(next(operands), next(kinds)), (op.args, op.kwargs), Value)
    try:
        return _tried(op.target, _frozen(args), _frozen(kwargs))
    except TypeError:  # an argument that cannot be a key: not worth knowing
        return False


class _Given(tuple[bool, torch.dtype]):
    """Stands for an operand: whether it is zero, and its type."""

    def __new__(cls, *content: Any) -> _Given:
        return super().__new__(cls, content)


@lru_cache(maxsize=4096)
def _tried(target: Any, args: Any, kwargs: Any) -> bool:
    count = iter(range(10**6))

    def tensor(given: _Given) -> torch.Tensor:
        zero, dtype = given
        numbers = np.roll(_SAMPLES, next(count))
        numbers = np.maximum(numbers, 0) if dtype == torch.bool else numbers  # true and false
        return torch.tensor(np.zeros(len(_SAMPLES)) if zero else numbers).to(dtype)

    try:
        with torch.no_grad():
            result = target(*map_tensors(tensor, args, _Given), **dict(map_tensors(tensor, kwargs, _Given)))
    except Exception:
        return False
    return all(bool((part == 0).all()) for part in tensors(result))


def _frozen(tree: Any) -> Any:
    """Nested arguments as something that can be a key."""
    if isinstance(tree, _Given) or not isinstance(tree, tuple | list | dict):
        return tree
    items = tree.items() if isinstance(tree, dict) else tree
    return tuple(_frozen(item) for item in items)


# Products.


@rule("mm", "bmm")
def product(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """[..., i, k] times [..., k, j]."""
    values = [value for name in ("self", "mat1", "mat2", "batch1", "batch2") if isinstance(value := args.get(name), Value)]
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
            if len(own) >= back and (other := own[-back]) is not None:
                walk.ledger.freeze(other.ids, op.index, f"is spread over several positions by {walk.place(op)}")
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
        walk.freeze(walk.of(value), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", range(2, len(value.shape)))
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
    return Axis(ids[0], axis.zero.reshape(groups, -1).all(axis=0))


# Normalisation.


def _scaled(walk: Walk, op: Op, axis: Axis | None, why: str, dim: int, tensors: list[Value | None]) -> Axis | None:
    """Couple a normalised dimension with scale, shift and statistics; zero if scale and shift (the first two) are."""
    here = [(axis, why)]
    here += [(walk.of(t).axes[dim], walk.of(t).why) for t in tensors if t is not None]
    joined = walk.join(here, op)
    if joined is None:
        return None
    scale, shift = (None if t is None else walk.of(t).axes[dim] for t in tensors[:2])
    if scale is None:
        return joined.known(False)
    zero = scale.zero if tensors[1] is None else scale.zero & (shift.zero if shift is not None else False)
    return joined.known(zero)


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Channels are dimension 1; with saved statistics every channel is on its own."""
    x = args["input"]
    axes, why = walk.of(x)
    tensors = [args.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    channel = _scaled(walk, op, axes[1], why, 0, tensors)
    if channel is not None and axes[1] is not None and not args.get("training", False) and not channel.zero.all():
        walk.ledger.lost.append(Problem(channel.ids[~channel.zero], op.index, walk.place(op)))
    if args.get("training", False):
        others = [dim for dim in range(len(axes)) if dim != 1]
        _statistics(walk, op, Labels(axes, why), others)
        if channel is not None and axes[1] is not None:
            shift = tensors[1] and walk.of(tensors[1]).axes[0]
            channel = channel.known(channel.zero | (axes[1].zero & (shift.zero if shift is not None else tensors[1] is None)))
    result = [channel if dim == 1 else axis and axis.known(False) for dim, axis in enumerate(axes)]
    return [Labels(tuple(result), why), *(_saved(value, (channel,)) for value in op.outputs[1:])]


def _saved(value: Value, axes: Axes) -> Labels:
    """The labels of the statistics that a norm returns as well, where it does."""
    fits = len(axes) == len(value.shape)
    fits = fits and all(axis is None or len(axis.ids) == n for axis, n in zip(axes, value.shape, strict=True))
    labels = Labels(tuple(axis and axis.known(False) for axis in axes), unlabelled(value).why)
    return labels if fits else unlabelled(value)


def _statistics(walk: Walk, op: Op, labels: Labels, dims: Sequence[int]) -> None:
    for dim in dims:
        if (axis := labels.axes[dim]) is not None:
            walk.ledger.notice(axis.ids, op.index, f"{walk.place(op)} takes statistics over it")


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Statistics over the last dimensions."""
    x, over = args["input"], len(args["normalized_shape"])
    axes, why = walk.of(x)
    normalised = range(len(axes) - over, len(axes))
    _statistics(walk, op, Labels(axes, why), normalised)
    result: list[Axis | None] = [axis and axis.known(False) for axis in axes]
    for dim in normalised:
        result[dim] = _scaled(walk, op, axes[dim], why, dim - len(axes), [args.get("weight"), args.get("bias")])
    saved = (*result[: len(axes) - over], *[None] * over)
    return [Labels(tuple(result), why), *(_saved(value, saved) for value in op.outputs[1:])]


@rule("native_group_norm")
def group_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Statistics over each group of channels and all positions."""
    x, groups = args["input"], args["group"]
    axes, why = walk.of(x)
    channel = _scaled(walk, op, axes[1], why, 0, [args.get("weight"), args.get("bias")])
    if channel is not None and groups != x.shape[1]:
        _statistics(walk, op, Labels(axes, why), [1])
        across(walk, op, channel, groups)
    elif channel is not None and axes[1] is not None:
        shift = args.get("bias") and walk.of(args["bias"]).axes[0]
        channel = channel.known(channel.zero | (axes[1].zero & (shift.zero if shift is not None else args.get("bias") is None)))
    _statistics(walk, op, Labels(axes, why), range(2, len(axes)))
    rest: Axes = tuple(axis and axis.known(False) for axis in (axes[0], *axes[2:]))
    saved = (rest[0], channel if groups == x.shape[1] else None)
    return [Labels((rest[0], channel, *rest[1:]), why), *(_saved(value, saved) for value in op.outputs[1:])]


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """v * g / |v|, the norm over all dimensions but one: it changes with the others, and is nothing for zeros."""
    v, g, dim = args["v"], args["g"], args["dim"] % len(args["v"].shape)
    axes, why = walk.of(v)
    _statistics(walk, op, Labels(axes, why), range(len(axes)))
    row = walk.join([(axes[dim], why), (walk.of(g).axes[dim], walk.of(g).why)], op)
    result = tuple(axis and axis.known(False) for axis in (*axes[:dim], row, *axes[dim + 1 :]))
    return [Labels(result, why), *(_saved(value, tuple(row if d == dim else None for d in range(len(axes)))) for value in op.outputs[1:])]


# Reductions.

REDUCTIONS = (
    ["sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "norm", "linalg_vector_norm", "logsumexp", "any", "all", "argmax", "argmin"]
)


@rule(*REDUCTIONS)
def reduction(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Sums, means, extremes: over dimensions that vanish only if zeros make no difference."""
    x = op.inputs[0]
    axes, why = walk.of(x)
    over = reduced(len(axes), args)
    if is_weight(x) and len(axes) > 1:
        walk.asked_weights = True
    for dim in over:
        if (axis := axes[dim]) is None:
            continue
        if op.name.startswith("arg") or len(op.inputs) > 1 or (op.name in ("max", "min") and walk.used(op.outputs[1:])):
            walk.ledger.freeze(axis.ids, op.index, f"{walk.place(op)} counts positions along it")
        elif not ignores_zeros(op):
            walk.ledger.notice(axis.ids, op.index, f"{walk.place(op)} takes statistics over it")
        else:
            walk.ledger.notice(axis.ids[~axis.zero], op.index, f"is not zero where {walk.place(op)} reads it")
    kept = [
        (None if dim in over else axis and axis.known(axis.zero & is_zero_reduced(op)))
        for dim, axis in enumerate(axes)
        if dim not in over or args.get("keepdim")
    ]
    return [Labels(tuple(kept) if len(kept) == len(v.shape) else (None,) * len(v.shape), why) for v in op.outputs]


def reduced(rank: int, args: dict[str, Any]) -> list[int]:
    """The dimensions over which an operator reduces: all of them when none is named."""
    dim = args.get("dim")
    dims = [dim] if isinstance(dim, int) else list(dim or [])
    return [d % rank for d in dims] if dims else list(range(rank))


def _reduce(op: Op, numbers: Sequence[float]) -> Any:
    values = {"dim": [0], "keepdim": False}
    named = {a.name: a.type for a in op.target._schema.arguments}
    kwargs: dict[str, Any] = {}
    for (name, kind), arg in zip(list(named.items())[1:], [*op.args[1:], *[None] * len(named)], strict=False):
        given = op.kwargs.get(name, arg)
        if name in values:
            kwargs[name] = 0 if name == "dim" and str(kind) == "int" else values[name]
        elif given is not None:
            kwargs[name] = given
    dtype = op.inputs[0].dtype
    result = op.target(torch.tensor(numbers, dtype=torch.float64).to(dtype), **kwargs)
    return result[0] if isinstance(result, tuple) else result


def ignores_zeros(op: Op) -> bool:
    """Whether a reduction gives the same with zeros appended, found by trying."""
    try:
        for numbers in (_SAMPLES, [abs(n) for n in _SAMPLES], [-abs(n) for n in _SAMPLES]):
            if not torch.allclose(_reduce(op, numbers), _reduce(op, [*numbers, 0.0, 0.0])):
                return False
        return True
    except Exception:
        return False


def is_zero_reduced(op: Op) -> bool:
    """Whether a reduction of zeros is zero, found by trying."""
    try:
        return bool((_reduce(op, [0.0] * 4) == 0).all())
    except Exception:
        return False


@rule("_softmax", "_log_softmax", "softmax", "log_softmax")
def softmax(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A softmax shares out 1 among all indices: fewer of them change the others."""
    axes, why = walk.of(op.inputs[0])
    _statistics(walk, op, Labels(axes, why), [args["dim"] % len(axes)])
    return Labels(tuple(axis and axis.known(False) for axis in axes), why)
