"""What operators that copy, make, reorder or reshape tensors do to labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cdlib.graph import Op
from cdlib.grouping.labels import Axis, Labels, unlabelled
from cdlib.grouping.rules.pointwise import broadcast
from cdlib.grouping.rules.registry import rule
from cdlib.grouping.walk_state import STRUCTURAL, Walk


@rule("clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy")
@rule("_reshape_alias", "as_strided_", "resolve_conj")
def same(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A copy, or the same tensor."""
    found = walk.of(op.inputs[0])
    if op.outputs[0].shape != op.inputs[0].shape:
        walk.freeze(found, op.index, f"is moved around by {walk.place(op)}")
        return unlabelled(op.outputs[0].shape)
    return found


@rule("copy_", "copy")
def copy(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The source, broadcast to the shape of the destination, in its place."""
    into, source = args["self"], args["src"]
    labels = broadcast(walk, op, [into, source], into.shape)
    given = walk.aligned(source, into.shape, op)
    axes = (
        axis and axis.known(here[0].zero if here and here[0] else False)
        for axis, here in zip(labels.axes, given, strict=True)
    )
    return Labels(tuple(axes), labels.why)


@rule("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
@rule("zeros", "ones", "full", "empty", "fill_", "zero_", "fill", "zero", "rand_like", "randn_like", "bernoulli_")
def uniform(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A tensor with the same number, or numbers drawn alike, everywhere: it may follow in size whatever it meets."""
    zero = "zero" in op.name or "empty" in op.name or args.get("fill_value", args.get("value")) == 0
    if op.name.endswith(("_like", "_")):
        axes = walk.of(op.inputs[0]).axes
        return Labels(tuple(axis and axis.known(zero) for axis in axes), walk.of(op.inputs[0]).why)
    made = tuple(fresh(walk, size, zero) if size > 1 else None for size in op.outputs[0].shape)
    return Labels(made, "meets a constant of fixed size")


def fresh(walk: Walk, size: int, zero: bool) -> Axis:
    """Labels for a dimension along which everything is alike."""
    return Axis(walk.ledger.fresh(size), np.full(size, zero))


@rule("scalar_tensor", "arange", "rand", "randn", "eye", "linspace", "_local_scalar_dense")
@rule("tril_indices", "triu_indices", "arange_start", "bernoulli")
def made(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """A tensor with numbers of its own."""
    for value in op.inputs:
        walk.freeze(walk.of(value), op.index, f"has its size read by {walk.place(op)}")
    return [unlabelled(value.shape, "meets a constant of fixed size") for value in op.outputs]


# Dimensions in another order or shape.


@rule("view_as_complex", "view_as_real", "_conj", "conj_physical")
def complex_numbers(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Pairs of numbers as complex numbers, and back: the pairs stay."""
    found = walk.of(op.inputs[0])
    if op.name == "view_as_complex":
        walk.freeze(found, op.index, f"{STRUCTURAL}: the two parts of a complex number", [len(found.axes) - 1])
        return Labels(found.axes[:-1], found.why)
    return Labels((*found.axes, None), found.why) if op.name == "view_as_real" else found


@rule("permute", "transpose", "t", "swapaxes", "movedim", "numpy_T", "transpose_")
def permute(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The dimensions in another order."""
    axes, why = walk.of(op.inputs[0])
    numbered = torch.empty(tuple(range(len(axes))), device="meta")  # each dimension is as long as its number
    order = op.target(numbered, *op.args[1:], **op.kwargs).shape
    return Labels(tuple(axes[dim] for dim in order), why)


@rule("squeeze", "unsqueeze", "squeeze_", "unsqueeze_", "view", "_unsafe_view", "reshape", "flatten", "unflatten")
def reshape(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The same elements in another shape, block by block of dimensions with the same number of elements."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    if source.numel == 0 or source.numel != out.numel:
        walk.freeze(walk.of(source), op.index, f"is moved around by {walk.place(op)}")
        return unlabelled(out.shape)
    result: list[Axis | None] = [None] * len(out.shape)
    for dims, outs in _blocks(source.shape, out.shape):
        if all(axes[dim] is None for dim in dims):
            continue
        if len(dims) == 1 and len(outs) == 1:
            result[outs[0]] = axes[dims[0]]
            continue
        single = [dim for dim in dims if source.shape[dim] == 1]
        walk.freeze(Labels(axes), op.index, "is a single channel", single)
        labelled = [dim for dim in dims if dim not in single and axes[dim] is not None]
        if len(labelled) > 1:  # one at most can carry the labels: that which is of a weight, if it is the only one
            own = [dim for dim in labelled if not _is_uniform(walk, axes[dim])]
            carrier = own if len(own) == 1 else []
            reason = f"{STRUCTURAL}: {walk.place(op)} merges it with another such dimension"
            walk.freeze(Labels(axes), op.index, reason, [dim for dim in labelled if dim not in carrier])
            labelled = carrier
        if labelled and (axis := axes[labelled[0]]) is not None:
            shape = [source.shape[dim] for dim in dims]
            place = [1] * len(dims)
            place[dims.index(labelled[0])] = -1
            flat = axis.each(partial(_spread, place=place, shape=shape))
            chosen, axis = _split(walk, op, flat, [out.shape[dim] for dim in outs])
            result[outs[chosen]] = axis
    return Labels(tuple(result), why)


def _is_uniform(walk: Walk, axis: Axis | None) -> bool:
    """Whether labels are those of a tensor that the network makes by itself, for example of repeated samples."""
    made = (first <= axis.ids[0] < first + size for first, size in walk.ledger.atoms.values()) if axis else ()
    return axis is not None and not any(made)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes of the same number of elements into the smallest blocks that agree in it."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        dims: list[int] = []
        outs: list[int] = []
        one = two = 1
        while not (dims and outs and one == two) and (i < len(before) or j < len(after)):
            if i < len(before) and (j == len(after) or one < two or not dims):
                dims.append(i)
                one *= before[i]
                i += 1
            else:
                outs.append(j)
                two *= after[j]
                j += 1
        found.append((dims, outs))
    return found


def _spread(part: NDArray[Any], place: list[int], shape: list[int]) -> NDArray[Any]:
    """What belongs to one dimension of a block, for every element of the block."""
    return np.broadcast_to(part.reshape(place), shape).reshape(-1)


def _split(walk: Walk, op: Op, flat: Axis, shape: list[int]) -> tuple[int, Axis]:
    """Choose the dimension that carries the labels of a block, and couple them across the others.

    A dimension along which alone the labels change needs no coupling. Otherwise it is the last one, or what the walk
    was told to take.
    """
    ids, zero = flat.ids.reshape(shape), flat.zero.reshape(shape)
    candidates = [dim for dim, size in enumerate(shape) if size > 1] or [0]
    for dim in candidates:
        others = tuple(d for d in range(len(shape)) if d != dim)
        if (ids.min(axis=others) == ids.max(axis=others)).all():
            return dim, Axis(ids.min(axis=others), np.asarray(zero.all(axis=others)))
    order = [candidates[-1], *candidates[:-1]]
    walk.choices[op.index] = (len(order), flat.ids[flat.ids >= 0])
    dim = order[walk.splits.get(op.index, 0)]
    rows = Axis(ids, zero).each(lambda part: np.moveaxis(part, dim, -1).reshape(-1, shape[dim]))
    return dim, walk.alike(rows, op)


@rule("expand", "broadcast_to", "repeat", "tile")
def repeat(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The whole tensor several times along dimensions; the positions made of a dimension of size 1 are alike."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    new = len(out.shape) - len(source.shape)
    result: list[Axis | None] = [fresh(walk, size, False) for size in out.shape[:new]]
    for axis, before, size in zip(axes, source.shape, out.shape[new:], strict=True):
        if before == 1 < size:
            walk.spread(axis, op)
            result.append(fresh(walk, size, False))
        else:
            result.append(axis and axis.each(partial(np.tile, reps=size // max(before, 1))))
    return Labels(tuple(result), why)
