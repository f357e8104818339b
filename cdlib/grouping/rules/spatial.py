"""What operators on positions do to labels: pooling, padding, resizing, blocks of pixels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from cdlib.graph import Op
from cdlib.grouping.labels import Axis, Labels, unlabelled
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.rules.reshape import fresh
from cdlib.grouping.walk_state import STRUCTURAL, Walk

_POOLS = "max_pool{}_with_indices avg_pool{} _adaptive_avg_pool{} adaptive_avg_pool{} adaptive_max_pool{} max_pool{}"
_SIZES = "upsample_nearest{} _upsample_nearest_exact{} reflection_pad{} replication_pad{}"
LOCAL = [name.format(d) for name in (_POOLS + " " + _SIZES).split() for d in ("1d", "2d", "3d")]
LOCAL += ["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"]
LOCAL += ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"]


@rule(*LOCAL)
def local(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Every channel by itself; the last one, two or three dimensions are positions."""
    axes, why = walk.of(op.inputs[0])
    first = len(axes) - int(re.findall("([123])[dD]", op.name)[-1])
    walk.freeze(Labels(axes), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", range(first, len(axes)))
    return [Labels((*axes[:first], *[None] * (len(v.shape) - first)), why) for v in op.outputs]


@rule("grid_sampler_2d", "grid_sampler_3d", "roi_align", "roi_pool")
def sampled(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Values between positions: dimension 1 is channels, and passes."""
    (image, where), out = op.inputs[:2], op.outputs[0]
    axes, why = walk.of(image)
    walk.freeze(Labels(axes), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", [0, *range(2, len(axes))])
    walk.freeze(walk.of(where), op.index, f"is a position in {walk.place(op)}")
    first = Labels((None, axes[1], *[None] * (len(out.shape) - 2)), why)
    return [first, *(unlabelled(value.shape) for value in op.outputs[1:])]


@rule("constant_pad_nd")
def pad(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Margins filled with a number; margins of channels can follow in size."""
    axes, why = walk.of(op.inputs[0])
    result = list(axes)
    pads, zero = args["pad"], args["value"] in (None, 0)
    for back in range(1, len(pads) // 2 + 1):
        left, right = pads[2 * back - 2 : 2 * back]
        axis = axes[-back]
        if axis is None or left == right == 0:
            continue
        if left < 0 or right < 0:
            walk.ledger.freeze(axis.ids, op.index, f"{STRUCTURAL}: {walk.place(op)} crops it")
            left_over = axis.take(slice(max(-left, 0), len(axis.ids) - max(-right, 0)))
            result[-back] = None if left > 0 or right > 0 else left_over
            continue
        whole = [fresh(walk, left, zero), axis, fresh(walk, right, zero)]
        result[-back] = Axis(*(np.concatenate(parts) for parts in zip(*whole, strict=True)))
    labels = Labels(tuple(result), why)
    return labels if zero else labels.not_zero()


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im")
def pixels(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Blocks of channels become positions, or positions blocks of channels."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    first = len(source.shape) - (2 if op.name == "col2im" else 3)
    channels = axes[first]
    walk.freeze(Labels(axes), op.index, f"{STRUCTURAL}: positions in {walk.place(op)}", range(first + 1, len(axes)))
    result: Axis | None = None
    if channels is not None and op.name in ("pixel_shuffle", "col2im"):
        result = walk.alike(channels.each(lambda part: part.reshape(out.shape[first], -1).T), op)
    elif channels is not None and op.name == "channel_shuffle":
        walk.across(op, channels, args["groups"])
        result = channels.each(lambda part: part.reshape(args["groups"], -1).T.reshape(-1))
    elif channels is not None:
        result = channels.each(lambda part: part.repeat(out.shape[first] // source.shape[first]))
    return Labels((*axes[:first], result, *[None] * (len(out.shape) - first - 1)), why)
