"""What normalisation does to labels."""

from __future__ import annotations

from typing import Any

from cdlib.graph import Op, Value
from cdlib.grouping.labels import Axes, Axis, Labels, unlabelled
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import Walk


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


def _by_itself(walk: Walk, channel: Axis | None, before: Axis | None, shift: Value | None) -> Axis | None:
    """A channel normalised by statistics of its own is zero, too, where it was and its shift is."""
    if channel is None or before is None:
        return channel
    shifts = None if shift is None else walk.of(shift).axes[0]
    return channel.known(channel.zero | (before.zero & (shifts.zero if shifts is not None else shift is None)))


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Channels are dimension 1; with saved statistics every channel is on its own."""
    x = args["input"]
    axes, why = walk.of(x)
    tensors = [args.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    channel = _scaled(walk, op, axes[1], why, 0, tensors)
    if args.get("training", False):
        walk.statistics(op, Labels(axes), [dim for dim in range(len(axes)) if dim != 1])
        channel = _by_itself(walk, channel, axes[1], tensors[1])
    elif channel is not None and axes[1] is not None:
        walk.ledger.lose(channel.ids[~channel.zero], op.index, walk.place(op))
    return _with_saved(op, Labels(axes, why).not_zero().replaced(1, channel), (channel,))


def _with_saved(op: Op, labels: Labels, saved: Axes) -> list[Labels]:
    """The labels of a result and those of the statistics that a norm returns as well, where it does."""
    found = [labels]
    for value in op.outputs[1:]:
        fits = len(saved) == len(value.shape)
        fits = fits and all(axis is None or len(axis.ids) == n for axis, n in zip(saved, value.shape, strict=True))
        found.append(Labels(saved, unlabelled(()).why).not_zero() if fits else unlabelled(value.shape))
    return found


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Statistics over the last dimensions."""
    x, over = args["input"], len(args["normalized_shape"])
    axes, why = walk.of(x)
    normalised = range(len(axes) - over, len(axes))
    walk.statistics(op, Labels(axes), normalised)
    result = list(Labels(axes).not_zero().axes)
    for dim in normalised:
        result[dim] = _scaled(walk, op, axes[dim], why, dim - len(axes), [args.get("weight"), args.get("bias")])
    return _with_saved(op, Labels(tuple(result), why), (*result[: len(axes) - over], *[None] * over))


@rule("native_group_norm")
def group_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Statistics over each group of channels and all positions."""
    x, groups = args["input"], args["group"]
    axes, why = walk.of(x)
    channel = _scaled(walk, op, axes[1], why, 0, [args.get("weight"), args.get("bias")])
    if channel is not None and groups != x.shape[1]:
        walk.statistics(op, Labels(axes), [1])
        walk.across(op, channel, groups)
    else:
        channel = _by_itself(walk, channel, axes[1], args.get("bias"))
    walk.statistics(op, Labels(axes), range(2, len(axes)))
    labels = Labels(axes, why).not_zero().replaced(1, channel)
    return _with_saved(op, labels, (labels.axes[0], channel if groups == x.shape[1] else None))


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """v * g / |v|, the norm over all dimensions but one: it changes with the others, and is nothing for zeros."""
    v, g, dim = args["v"], args["g"], args["dim"] % len(args["v"].shape)
    axes, why = walk.of(v)
    walk.statistics(op, Labels(axes), range(len(axes)))
    row = walk.join([(axes[dim], why), (walk.of(g).axes[dim], walk.of(g).why)], op)
    labels = Labels(axes, why).replaced(dim, row).not_zero()
    return _with_saved(op, labels, tuple(row if d == dim else None for d in range(len(axes))))
