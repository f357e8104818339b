"""Write the program of a module from recordings of the network with two and with three samples.

What is the same in both is fixed; a size that differs counts samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cdlib.graph import Call, Op, Value, leaves, map_tensors
from cdlib.surgery.prediction import Prediction
from cdlib.surgery.rewriting.program import Device, Held, PerSample, Program, Slot, Step, attention

_SKIPPED = {"as_strided_", "empty"}


class NotPossible(Exception):
    """A module cannot be rewritten by itself."""


class Writer:
    """Makes the program of one call of a module from recordings with two and with three samples."""

    def __init__(self, name: str, two: Prediction, three: Prediction, call: Call, other: Call) -> None:
        self.name, self.two, self.three = name, two, three
        self.constants: dict[str, Tensor] = {}
        self._slots: dict[int, int] = {}
        inputs = [v for v in leaves(call.inputs) if isinstance(v, Value)]
        others = [v for v in leaves(other.inputs) if isinstance(v, Value)]
        if call.stop - call.start != other.stop - other.start or len(inputs) != len(others):
            raise NotPossible(f"{name or 'the network'} does not run the same operators for every number of samples")
        shapes = tuple(
            tuple(_size(a, b) for a, b in zip(two.shape(x), three.shape(y), strict=True))
            for x, y in zip(inputs, others, strict=True)
        )
        slots = tuple(self._slot(value) for value in inputs)
        steps = [step for item in self._events(call, other) if (step := self._step(*item))]
        outputs = map_tensors(self._leaf, call.outputs, Value)
        self.program = Program(shapes, slots, _with_ends(steps, outputs), outputs, tuple(self.constants))

    def _slot(self, value: Value) -> int:
        return self._slots.setdefault(value.index, len(self._slots))

    def _events(self, call: Call, other: Call) -> Iterator[tuple[Op | Call, Op | Call]]:
        """The operators, and between them the modules that do nothing at inference."""
        idle = [c for c in self.two.graph.calls if call.start <= c.start == c.stop <= call.stop and self._is_idle(c)]
        for at in range(call.start, call.stop + 1):
            for each in idle:
                if each.start == at:
                    yield each, each
            if at < call.stop:
                yield self.two.graph.ops[at], self.three.graph.ops[at - call.start + other.start]

    def _is_idle(self, call: Call) -> bool:
        inputs = [v for v in leaves(call.inputs) if isinstance(v, Value)]
        return inside(call.module, self.name) and isinstance(call.outputs, Value) and inputs == [call.outputs]

    def _step(self, op: Op | Call, other: Op | Call) -> Step | None:
        if isinstance(op, Call):
            if not isinstance(op.outputs, Value) or op.outputs.index not in self._slots:
                return None
            return Step(self._local(op.module), (), {}, (self._slot(op.outputs),))
        assert isinstance(other, Op)
        if op.target is not other.target:
            raise NotPossible(
                f"{self.name or 'the network'} does not run the same operators for every number of samples"
            )
        if op.target.namespace == "profiler":
            return None
        if op.name in _SKIPPED and (op.name != "empty" or not op.outputs[0].numel):
            return None
        args, others = self.two.arguments(op), self.three.arguments(other)
        target = _target(op)
        merged = {key: self._merge(args[key], others[key]) for key in args}
        if merged.get("device") is not None:
            merged["device"] = Device()
        if target is torch.ops.aten.reshape.default:
            merged["shape"] = merged.pop("size")
        positional: tuple[Any, ...] = ()
        if target is not attention:
            names = [a.name for a in target._schema.arguments if not a.kwarg_only]
            positional = tuple(merged.pop(name) for name in names if name in merged and name != "training")
            if "training" in names:
                split = names.index("training")
                positional, after = positional[:split], positional[split:]
                merged |= dict(zip(names[split + 1 :], after, strict=True))
        outputs = tuple(self._slot(value) for value in op.outputs)
        follows = merged.get("training") is False  # saved statistics at inference, those of the batch while training
        return Step(target, positional, merged, outputs, self._local(op.module) if follows else None)

    def _local(self, module: str) -> str:
        return module if not self.name else module[len(self.name) + 1 :]

    def _merge(self, a: Any, b: Any) -> Any:
        if isinstance(a, Value):
            return self._leaf(a)
        if isinstance(a, list | tuple):
            return type(a)(self._merge(x, y) for x, y in zip(a, b, strict=True))
        if type(a) is int:
            return _size(a, b)
        if type(a) is not type(b) or (a != b and a == a):
            raise NotPossible(f"{self.name or 'the network'} computes a number from the number of samples")
        return a

    def _leaf(self, value: Value) -> Slot | Held:
        if value.index in self._slots:
            return Slot(self._slots[value.index])
        if value.kind in ("parameter", "buffer") and value.index < self.two.graph.inputs[0].index:
            inside = value.name.startswith(f"{self.name}.") or not self.name
            if inside:
                return Held(value.name[len(self.name) + 1 :] if self.name else value.name)
        if value.index in self.two.graph.constants:
            name = f"_constant_{value.index}"
            self.constants[name] = self.two.graph.constants[value.index].detach().clone()
            return Held(name)
        raise NotPossible(f"{self.name} uses a tensor that was computed outside of it")


def _target(op: Op) -> Any:
    aten = torch.ops.aten
    if op.name in ("view", "_unsafe_view", "_reshape_alias"):
        return aten.reshape.default
    if op.name == "split":
        return aten.split_with_sizes.default
    return attention if op.name == "scaled_dot_product_attention" else op.target


def _size(a: int, b: int) -> int | PerSample:
    """The size of which `a` is seen with two samples and `b` with three."""
    return a if a == b else PerSample(a - 2 * (b - a), b - a)


def _with_ends(steps: list[Step], outputs: Any) -> tuple[Step, ...]:
    """Note after which step a tensor is not needed any more."""
    needed = {leaf.number for leaf in _places(outputs)}
    found: list[Step] = []
    for step in reversed(steps):
        used = {leaf.number for leaf in _places((step.args, step.kwargs))} | set(step.outputs)
        ends = () if isinstance(step.target, str) else tuple(sorted(used - needed))
        needed |= used
        found.append(Step(step.target, step.args, step.kwargs, step.outputs, step.follows, ends))
    return tuple(reversed(found))


def _places(tree: Any) -> list[Slot]:
    found: list[Slot] = []
    map_tensors(found.append, tree, Slot)
    return found


def inside(name: str, outer: str) -> bool:
    """Whether a module is inside another, by their names."""
    return name != outer and (not outer or name.startswith(f"{outer}."))
