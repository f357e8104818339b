"""What normalisation, reductions and softmax do to labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Axes, Axis, Labels, Problem
from cdlib.grouping.rules.products import across
from cdlib.grouping.rules.registry import SAMPLES, rule, unlabelled
from cdlib.grouping.walk_state import Walk, is_weight

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
            channel = channel.known(
                channel.zero | (axes[1].zero & (shift.zero if shift is not None else tensors[1] is None))
            )
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
        channel = channel.known(
            channel.zero | (axes[1].zero & (shift.zero if shift is not None else args.get("bias") is None))
        )
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
    return [
        Labels(result, why),
        *(_saved(value, tuple(row if d == dim else None for d in range(len(axes)))) for value in op.outputs[1:]),
    ]


# Reductions.

REDUCTIONS = [
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "prod",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "any",
    "all",
    "argmax",
    "argmin",
]


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
        for numbers in (SAMPLES, [abs(n) for n in SAMPLES], [-abs(n) for n in SAMPLES]):
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
