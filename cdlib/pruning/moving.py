"""What operators that move, copy, join or make elements do to labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdlib.graph import Op, Value
from cdlib.pruning.labels import Axis, Ids, Labels
from cdlib.pruning.propagation import STRUCTURAL, Walk
from cdlib.pruning.rules import broadcast, rule, unlabelled


@rule("clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "_reshape_alias", "as_strided_", "resolve_conj")
def same(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A copy, or the same tensor."""
    found = walk.of(op.inputs[0])
    if op.outputs[0].shape != op.inputs[0].shape:
        walk.freeze(found, op.index, f"is moved around by {walk.place(op)}")
        return unlabelled(op.outputs[0])
    return found


@rule("copy_", "copy")
def copy(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The source, broadcast to the shape of the destination, in its place."""
    into, source = args["self"], args["src"]
    labels = broadcast(walk, op, [into, source], into.shape)
    own, axes = walk.of(source).axes, list(labels.axes)
    for back in range(1, len(axes) + 1):
        if (axis := axes[-back]) is None:
            continue
        other = own[-back] if len(own) >= back else None
        same = other is not None and source.shape[-back] == into.shape[-back]
        axes[-back] = axis.known(other.zero if same and other is not None else False)
    return Labels(tuple(axes), labels.why)


@rule("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
@rule("zeros", "ones", "full", "empty", "fill_", "zero_", "fill", "zero", "rand_like", "randn_like", "bernoulli_")
def uniform(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A tensor with the same number, or numbers drawn alike, everywhere: it may follow in size whatever it meets."""
    zero = "zero" in op.name or "empty" in op.name or args.get("fill_value", args.get("value")) == 0
    out = op.outputs[0]
    if op.name.endswith(("_like", "_")):
        axes = walk.of(op.inputs[0]).axes
        return Labels(tuple(axis and axis.known(zero) for axis in axes), walk.of(op.inputs[0]).why)
    made = tuple(fresh(walk, size, zero) if size > 1 else None for size in out.shape)
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
    return [unlabelled(value, "meets a constant of fixed size") for value in op.outputs]


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
    rank = len(axes)
    if op.name == "permute":
        order = [dim % rank for dim in args["dims"]]
    else:
        first, second = (args["dim0"] % rank, args["dim1"] % rank) if rank and "dim0" in args else (0, rank - 1)
        order = list(range(rank))
        if rank > 1:
            order[first], order[second] = order[second], order[first]
    return Labels(tuple(axes[dim] for dim in order), why)


@rule("squeeze", "unsqueeze", "squeeze_", "unsqueeze_", "view", "_unsafe_view", "reshape", "flatten", "unflatten")
def reshape(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The same elements in another shape, block by block of dimensions with the same number of elements."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    if source.numel == 0 or source.numel != out.numel:
        walk.freeze(walk.of(source), op.index, f"is moved around by {walk.place(op)}")
        return unlabelled(out)
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
        if len(labelled) > 1:
            reason = f"{STRUCTURAL}: {walk.place(op)} merges it with another such dimension"
            uniform = [dim for dim in labelled if _is_uniform(walk, axes[dim])]
            walk.freeze(Labels(axes), op.index, reason, uniform or labelled)
            labelled = [dim for dim in labelled if uniform and dim not in uniform]
            if len(labelled) > 1:
                walk.freeze(Labels(axes), op.index, reason, labelled)
            if len(labelled) != 1:
                continue
        if labelled and (axis := axes[labelled[0]]) is not None:
            shape = [source.shape[dim] for dim in dims]
            place = [1] * len(dims)
            place[dims.index(labelled[0])] = -1
            flat = Axis(*(np.broadcast_to(part.reshape(place), shape).reshape(-1) for part in axis))
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
            return dim, Axis(ids.min(axis=others), zero.all(axis=others))
    order = [candidates[-1], *candidates[:-1]]
    walk.choices[op.index] = (len(order), flat.ids[flat.ids >= 0])
    dim = order[walk.splits.get(op.index, 0)]
    rows = np.moveaxis(ids, dim, -1).reshape(-1, shape[dim])
    for row in rows[1:]:
        walk.ledger.couple(rows[0], row, op.index)
    return dim, Axis(_representative(rows), np.moveaxis(zero, dim, -1).reshape(-1, shape[dim]).all(axis=0))


def _representative(rows: Ids) -> Ids:
    """One label per column; that of an index that stays, if there is one."""
    return rows.min(axis=0)


@rule("expand", "broadcast_to")
def expand(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Repeat dimensions of size 1: all the repeated positions are alike."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    new = len(out.shape) - len(source.shape)
    result: list[Axis | None] = []
    for dim, size in enumerate(out.shape):
        axis = axes[dim - new] if dim >= new else None
        if dim >= new and source.shape[dim - new] == size:
            result.append(axis)
            continue
        if axis is not None:
            walk.ledger.freeze(axis.ids, op.index, f"is spread over several positions by {walk.place(op)}")
        result.append(fresh(walk, size, False))
    return Labels(tuple(result), why)


@rule("repeat", "tile")
def repeat(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """The whole tensor several times along each dimension."""
    source, out = op.inputs[0], op.outputs[0]
    axes, why = walk.of(source)
    new = len(out.shape) - len(source.shape)
    result: list[Axis | None] = []
    for dim, size in enumerate(out.shape):
        axis = axes[dim - new] if dim >= new else None
        if dim < new or (source.shape[dim - new] == 1 and size > 1):
            if axis is not None:
                walk.ledger.freeze(axis.ids, op.index, f"is spread over several positions by {walk.place(op)}")
            result.append(fresh(walk, size, False) if size > 1 else None)
        else:
            times = size // source.shape[dim - new]
            result.append(axis and Axis(np.tile(axis.ids, times), np.tile(axis.zero, times)))
    return Labels(tuple(result), why)


# Parts and joins.


@rule("slice")
def slice_(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """A range of one dimension."""
    source = op.inputs[0]
    axes, why = walk.of(source)
    dim = args["dim"] % len(axes)
    if (axis := axes[dim]) is None:
        return Labels(axes, why)
    if args["step"] not in (None, 1):
        walk.ledger.freeze(axis.ids, op.index, f"{STRUCTURAL}: {walk.place(op)} takes every {args['step']}th of it")
    part = axis.take(slice(args["start"], args["end"], args["step"]))
    return Labels((*axes[:dim], part, *axes[dim + 1 :]), why)


@rule("select")
def select(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """One index of a dimension: it has to stay."""
    axes, why = walk.of(op.inputs[0])
    dim = args["dim"] % len(axes)
    if (axis := axes[dim]) is not None:
        walk.ledger.freeze(axis.ids[[args["index"]]], op.index, f"is picked by its number by {walk.place(op)}")
    return Labels((*axes[:dim], *axes[dim + 1 :]), why)


@rule("unbind")
def unbind(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Every index of a dimension by itself."""
    found = walk.of(op.inputs[0])
    dim = args["dim"] % len(found.axes)
    walk.freeze(found, op.index, f"{STRUCTURAL}: {walk.place(op)} takes it apart", [dim])
    return [Labels((*found.axes[:dim], *found.axes[dim + 1 :]), found.why) for _ in op.outputs]


@rule("split", "split_with_sizes", "chunk", "tensor_split")
def split(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Consecutive ranges of a dimension."""
    axes, why = walk.of(op.inputs[0])
    dim = args["dim"] % len(axes)
    start, result = 0, []
    for value in op.outputs:
        axis = axes[dim] and axes[dim].take(slice(start, start + value.shape[dim]))  # type: ignore[union-attr]
        result.append(Labels((*axes[:dim], axis, *axes[dim + 1 :]), why))
        start += value.shape[dim]
    return result


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
            joined = walk.join(here, op)
            zero = np.logical_and.reduce([a.zero for a, _ in here if a is not None]) if joined is not None else False
            axes.append(joined and joined.known(zero))
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


@rule("flip", "roll", "cumsum", "cumprod", "sort", "topk", "unfold", "index_select", "gather", "repeat_interleave")
@rule("cummax", "cummin", "_fft_r2c", "_fft_c2r", "_fft_c2c")
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
    axes = tuple(None if dim in dims else axis for dim, axis in enumerate(found.axes))
    places = tuple(axis and axis.known(False) for axis in axes)  # where the numbers were, as sort and topk return them
    new = (None,) * (len(op.outputs[0].shape) - rank)
    return [Labels((places if k else axes) + new, found.why) for k in range(len(op.outputs))]


@rule("index", "index_put_", "index_put", "_unsafe_index")
def index(walk: Walk, op: Op, args: dict[str, Any]) -> Labels:
    """Positions named by tensors of numbers or flags; the other dimensions pass."""
    source, out = op.inputs[0], op.outputs[0]
    found = walk.of(source)
    indices = list(args["indices"])
    covered: list[int] = []
    at = 0
    for each in indices:
        wide = len(each.shape) if each is not None and str(each.dtype) in ("torch.bool", "torch.uint8") else 1
        covered += range(at, at + wide) if each is not None else []
        at += wide
        if each is not None:
            walk.freeze(walk.of(each), op.index, f"is an index in {walk.place(op)}")
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
        if size != into_size(op, dim):
            walk.freeze(given, op.index, reason, [len(given.axes) - back] if here is not None else [])
            axes[dim] = axis and axis.known(False)
            continue
        joined = walk.join([(axis, into.why), (here, given.why)], op)
        both = axis is not None and here is not None and axis.zero & here.zero
        axes[dim] = joined and joined.known(both)
    return Labels(tuple(axes), into.why)


def into_size(op: Op, dim: int) -> int:
    """The size of a dimension of the tensor that an operator reads first."""
    return op.inputs[0].shape[dim]


# Positions: pooling, padding, resizing.


def _spatial(name: str) -> int:
    return int(next(part[-2] for part in name.split("_")[::-1] if part[-2:] in ("1d", "2d", "3d", "1D", "2D", "3D")))


_POOLS = "max_pool{}_with_indices avg_pool{} _adaptive_avg_pool{} adaptive_avg_pool{} adaptive_max_pool{} max_pool{}"
_SIZES = "upsample_nearest{} _upsample_nearest_exact{} reflection_pad{} replication_pad{}"
LOCAL = [name.format(d) for name in (_POOLS + " " + _SIZES).split() for d in ("1d", "2d", "3d")]
LOCAL += ["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"]
LOCAL += ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"]


@rule(*LOCAL)
def local(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """Every channel by itself; the last one, two or three dimensions are positions."""
    axes, why = walk.of(op.inputs[0])
    first = len(axes) - _spatial(op.name.replace("_aa", "").replace("_with_indices", ""))
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
    return [first, *(unlabelled(value) for value in op.outputs[1:])]


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
            result[-back] = Axis(*(part[max(-left, 0) : len(part) - max(-right, 0)] for part in axis))
            if left > 0 or right > 0:
                result[-back] = None
            continue
        whole = [fresh(walk, left, zero), axis, fresh(walk, right, zero)]
        result[-back] = Axis(*(np.concatenate(parts) for parts in zip(*whole, strict=True)))
    if not zero:
        result = [axis and axis.known(False) for axis in result]
    return Labels(tuple(result), why)


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
        ids, zero = (part.reshape(out.shape[first], -1) for part in channels)
        for other in ids.T[1:]:
            walk.ledger.couple(ids[:, 0], other, op.index)
        result = Axis(ids.min(axis=1), zero.all(axis=1))
    elif channels is not None and op.name == "channel_shuffle":
        ids, zero = (part.reshape(args["groups"], -1) for part in channels)
        for other in ids[1:]:
            walk.ledger.couple(ids[0], other, op.index)
        result = Axis(ids.T.reshape(-1), zero.T.reshape(-1))
    elif channels is not None:
        times = out.shape[first] // source.shape[first]
        result = Axis(channels.ids.repeat(times), channels.zero.repeat(times))
    return Labels((*axes[:first], result, *[None] * (len(out.shape) - first - 1)), why)
