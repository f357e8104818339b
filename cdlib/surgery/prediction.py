"""What a network's operators look like after labels are gone, and whether a network that was cut looks so.

The prediction comes from the labels alone. Running the cut network and comparing operator by operator tells whether its
Python code follows the new widths or computes something else, such as a head size from a width that is no longer
there, or a scale from the number of channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from cdlib.errors import CdlibError
from cdlib.graph import Graph, Op, Value, leaves
from cdlib.grouping import Flags, Ids, Key, Walk, arguments

_SILENT = {"clone", "contiguous", "alias", "detach", "_to_copy", "as_strided_", "lift_fresh", "empty"}
_SAME = {"_unsafe_view": "view", "reshape": "view", "split": "split_with_sizes", "_reshape_alias": "view"}
_PLAIN = {**_SAME, "mm": "addmm"}
_SIZED = {"view", "_unsafe_view", "reshape", "expand", "zeros", "ones", "full", "empty"}
_SIZED |= {"new_zeros", "new_ones", "new_full", "new_empty", "_reshape_alias"}
_WEIGHTED = {"convolution", "addmm", "mm", "native_batch_norm", "native_layer_norm"}
"""All that can be compared when the course of a run depends on numbers."""


def gone(walk: Walk, slices: Mapping[Key, Ids]) -> Flags:
    """Mark the labels that vanish with some slices; a CdlibError if others must vanish too, or there are none such."""
    ledger, of = walk.ledger, walk.ledger.components()
    marks = np.zeros(ledger.count, dtype=bool)
    for (tensor, dim), ids in slices.items():
        first, size = ledger.atoms.get((tensor, dim), (0, 0))
        if ids.size and ids.max() >= size:
            raise CdlibError(f"{tensor} has no index {ids.max()} in dimension {dim}: it is another network.")
        marks[of[first + ids]] = True
    marks = marks[of]
    none = np.empty(0, dtype=np.int64)
    for (tensor, dim), (first, size) in ledger.atoms.items():
        if not np.array_equal(np.flatnonzero(marks[first : first + size]), slices.get((tensor, dim), none)):
            raise CdlibError(f"the slices to remove do not belong together in {tensor}, dimension {dim}.")
    return marks


class Prediction:
    """A network as it is once the labels marked in `gone` are."""

    def __init__(self, walk: Walk, gone: Flags) -> None:
        self.walk, self.graph, self.gone = walk, walk.graph, gone

    def kept(self, value: Value, dim: int) -> Flags | None:
        """Which indices of a dimension stay; None if all do."""
        axis = self.walk.of(value).axes[dim] if value.shape else None
        if axis is None:
            return None
        stays = (axis.ids < 0) | ~self.gone[np.maximum(axis.ids, 0)]
        return None if stays.all() else stays

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value."""
        found = (self.kept(value, dim) for dim in range(len(value.shape)))
        return tuple(n if stays is None else int(stays.sum()) for n, stays in zip(value.shape, found, strict=True))

    def changes(self, op: Op) -> bool:
        """Whether an operator reads or makes a tensor that changes."""
        return any(self.shape(value) != value.shape for value in (*op.inputs, *op.outputs))

    def arguments(self, op: Op) -> dict[str, Any]:
        """What the operator must be called with, by name, to do the same on what is left."""
        args, name = _explicit(op), op.name
        if name in _SIZED:
            args["size"] = list(self.shape(op.outputs[0]))
        elif name in ("split", "split_with_sizes"):
            args["split_sizes"] = [self.shape(value)[args["dim"] % len(value.shape)] for value in op.outputs]
            args.pop("split_size", None)
        elif name in ("slice", "select") and (stays := self.kept(op.inputs[0], args["dim"])) is not None:
            for place in {"start", "end", "index"}.intersection(args):  # less what is gone before it
                args[place] = int(stays[: args[place]].sum())
        elif name == "constant_pad_nd":
            args["pad"] = self._pads(op, args["pad"])
        elif name == "convolution":
            x, groups = args["input"], args["groups"]
            args["groups"] = self.shape(x)[1] if groups == x.shape[1] and groups > 1 else groups
        elif name == "native_group_norm":
            x, channels = args["input"], self.shape(args["input"])[1]
            args["C"], args["group"] = channels, channels if args["group"] == x.shape[1] else args["group"]
            args["HxW"] = math.prod(self.shape(x)[2:])
        elif "normalized_shape" in args:
            args["normalized_shape"] = list(self.shape(op.inputs[0])[-len(args["normalized_shape"]) :])
        elif name == "repeat":
            before, after = self.shape(op.inputs[0]), self.shape(op.outputs[0])
            new = len(after) - len(before)
            args["repeats"] = [n if k < new else n // before[k - new] for k, n in enumerate(after)]
        return args

    def _pads(self, op: Op, pads: list[int]) -> list[int]:
        """Count what is left of the margins."""
        found = list(pads)
        for k in range(0, len(pads), 2):
            if (stays := self.kept(op.outputs[0], -1 - k // 2)) is not None:
                left, right = pads[k : k + 2]
                found[k : k + 2] = int(stays[:left].sum()), int(stays[len(stays) - right :].sum())
        return found


def _explicit(op: Op) -> dict[str, Any]:
    """What an operator was called with, by name, and as numbers what it works out: bounds, a place, a scale."""
    args = arguments(op)
    if op.name == "slice":
        size = op.inputs[0].shape[args["dim"]]
        args["start"], args["end"], _ = slice(args["start"], args["end"], args["step"]).indices(size)
    elif op.name == "select":
        args["index"] %= op.inputs[0].shape[args["dim"]]
    elif op.name == "scaled_dot_product_attention" and args.get("scale") is None:
        args["scale"] = 1 / math.sqrt(args["query"].shape[-1])
    return args


def first_difference(prediction: Prediction, after: Graph) -> tuple[str, Op | None] | None:
    """Return where a cut network first does not run as predicted; None if it does to the end.

    That is the module whose code does otherwise, and the operator that it should have run, if there is one.
    """
    expected, actual = _compared(prediction.graph), _compared(after)
    agree = _agree
    if prediction.graph.follows_numbers or after.follows_numbers:
        agree = _agree_in_numbers
        if [_PLAIN.get(op.name, op.name) for op in expected] != [_PLAIN.get(op.name, op.name) for op in actual]:
            expected, actual = ([op for op in ops if op.name in _WEIGHTED] for ops in (expected, actual))
    for op, other in zip(expected, actual, strict=False):
        if op.index in prediction.walk.uses.running and not agree(prediction, op, other):
            return op.module, op
    missing = expected[len(actual)] if len(actual) < len(expected) else None
    failed = after.failed_in
    if failed is not None and (missing is None or f"{missing.module}.".startswith(f"{failed}." if failed else "")):
        return failed, missing
    return (missing.module, missing) if missing is not None else None


def runs_as(prediction: Prediction, expected: Graph, actual: Graph) -> bool:
    """Whether a run of a cut module is, operator by operator, what is predicted of another one."""
    ones, others = _compared(expected), _compared(actual)
    return len(ones) == len(others) and all(
        _agree(prediction, op, other) for op, other in zip(ones, others, strict=True)
    )


def _compared(graph: Graph) -> list[Op]:
    """The operators that compute something, without those that copy, fill memory or tell a profiler."""
    return [op for op in graph.ops if op.name not in _SILENT and op.target.namespace != "profiler"]


def _agree_in_numbers(prediction: Prediction, expected: Op, actual: Op) -> bool:
    """Compare weights and factors alone: in a run with numbers, the shapes of other tensors may depend on them."""
    if _PLAIN.get(expected.name, expected.name) != _PLAIN.get(actual.name, actual.name):
        return False
    weights, others = ([v for v in op.inputs if v.name][-1:] for op in (expected, actual))
    if [prediction.shape(v) for v in weights] != [v.shape for v in others]:
        return False
    both = (prediction.arguments(expected), _explicit(actual))
    factors, given = ([x for x in leaves(args) if isinstance(x, float)] for args in both)
    return _equal(factors, given)


def _agree(prediction: Prediction, expected: Op, actual: Op) -> bool:
    if _SAME.get(expected.name, expected.name) != _SAME.get(actual.name, actual.name):
        return False
    if [prediction.shape(v) for v in expected.outputs] != [v.shape for v in actual.outputs]:
        return False
    if expected.name in _SIZED or expected.name.startswith("split"):
        return True
    wanted, found = prediction.arguments(expected), _explicit(actual)
    return all(_equal(wanted[name], found.get(name)) for name in wanted if name != "device")


def _equal(a: Any, b: Any) -> bool:
    ones, others = leaves(a), leaves(b)
    return len(ones) == len(others) and all(map(_alike, ones, others))


def _alike(x: Any, y: Any) -> bool:
    if isinstance(x, Value):
        return isinstance(y, Value)
    if isinstance(x, float) and isinstance(y, float):
        return math.isclose(x, y, rel_tol=1e-12)
    if isinstance(x, torch.ScriptObject | torch.Generator):  # a handle, which another run has another one of
        return type(x) is type(y)
    return bool(x == y)
