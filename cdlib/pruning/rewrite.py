"""Modules that run recorded operators instead of their Python code, for code that does not follow new widths.

A `Rewritten` module keeps the parameters, buffers and submodules of the module in whose place it stands, under the same
names. It does what the recording did: for inputs of the same size, but for any number of samples. To know which of the
recorded sizes count samples, the network is recorded with two samples and with three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.capture import ExampleInput, repeated, run
from cdlib.errors import CdlibError
from cdlib.graph import Call, Graph, Op, Value, leaves, map_tensors, tensors
from cdlib.pruning.labels import Ids
from cdlib.pruning.prediction import Prediction
from cdlib.pruning.propagation import walk

_SKIPPED = {"as_strided_", "empty"}


class PerSample(NamedTuple):
    """A size that depends on the number of samples: ``fixed + each * samples``."""

    fixed: int
    each: int


class Slot(NamedTuple):
    """A tensor computed before."""

    number: int


class Device(NamedTuple):
    """The device of the inputs (the recording knows none)."""

    known: bool = False


class Held(NamedTuple):
    """A parameter or buffer, by its name in the module."""

    name: str


@dataclass(frozen=True)
class Step:
    """Call an operator (or, while training, a submodule that does nothing at inference) and keep what it returns.

    `follows` names the submodule whose mode says whether a norm uses the statistics of the batch; `done_with` are the
    slots that are not needed afterwards.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    follows: str | None = None
    done_with: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """The steps of a module: the shapes of its tensor inputs, their slots, the steps, what to return."""

    shapes: tuple[tuple[int | PerSample, ...], ...]
    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: Any
    constants: tuple[str, ...]


class Rewritten(nn.Module):
    """The recorded operators of a module, with its tensors.

    Takes what the module took, for inputs of the size that it was recorded with and any number of samples; raises
    `CdlibError` for other sizes. Norms use the statistics of the batch while training; dropout and stochastic depth
    that are modules work as before, those that are function calls are gone.

    Attributes
    ----------
    stands_for : str
        The class of the module in whose place it is.
    """

    def __init__(self, original: nn.Module, program: Program, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        mine = set(vars(nn.Module()))
        vars(self).update({name: value for name, value in vars(original).items() if name not in mine})
        self._parameters, self._buffers, self._modules = original._parameters, original._buffers, original._modules
        self._non_persistent_buffers_set = original._non_persistent_buffers_set
        self.training = original.training
        self.stands_for = getattr(original, "stands_for", type(original).__name__)
        self.program = program
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def extra_repr(self) -> str:
        """What it stands for and for which sizes."""
        shapes = ", ".join("x".join("N" if isinstance(n, PerSample) else str(n) for n in s) for s in self.program.shapes)
        return f"in place of {self.stands_for}, for inputs of {shapes}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps."""
        program = self.program
        given = tensors((args, kwargs))
        samples = self._samples([tuple(t.shape) for t in given])
        slots = dict(zip(program.inputs, given, strict=True))

        def fill(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                return slots[leaf.number]
            if isinstance(leaf, Held):
                return _get(self, leaf.name)
            return given[0].device if isinstance(leaf, Device) else leaf.fixed + leaf.each * samples

        for step in program.steps:
            if isinstance(step.target, str):
                module = self.get_submodule(step.target)
                if module.training:
                    slots[step.outputs[0]] = module(slots[step.outputs[0]])
                continue
            filled, named = (map_tensors(fill, tree, _Place) for tree in (step.args, step.kwargs))
            if step.follows is not None:
                named["training"] = self.get_submodule(step.follows).training
            result = step.target(*filled, **named)
            slots.update(zip(step.outputs, tensors(result), strict=False))
            for number in step.done_with:
                del slots[number]
        return map_tensors(fill, program.outputs, _Place)

    def _samples(self, shapes: list[tuple[int, ...]]) -> int:
        wanted = self.program.shapes
        samples = 1
        for given, shape in zip(shapes, wanted, strict=False):
            for size, want in zip(given, shape, strict=False):
                if isinstance(want, PerSample):
                    samples = (size - want.fixed) // want.each
        fits = [tuple(n.fixed + n.each * samples if isinstance(n, PerSample) else n for n in s) for s in wanted]
        if shapes != fits:
            raise CdlibError(
                f"{self.stands_for} was rewritten for inputs of shape {', '.join(map(str, fits))} and got "
                f"{', '.join(map(str, shapes))}: call the network with the size of the example it was pruned with."
            )
        return samples


_Place = (Slot, Held, PerSample, Device)


class Rewriter:
    """Replaces modules of a network that was cut; records the whole network when it is first needed."""

    def __init__(
        self,
        model: nn.Module,
        example_input: ExampleInput,
        slices: Mapping[tuple[str, int], Ids],
        batch_dim: int | None,
        training: Graph | None,
    ) -> None:
        self._model, self._input, self._slices, self._batch_dim = model, example_input, slices, batch_dim
        self._training = training
        self._recorded: list[Prediction] = []
        self._done: set[str] = set()
        self.args: tuple[Any, ...] = ()

    @property
    def prediction(self) -> Prediction:
        """What the cut network should do with `args`, two samples; known once a module was rewritten."""
        return self._recorded[0]

    def rewrite(self, small: nn.Module, name: str, error: Exception | None) -> nn.Module:
        """Return the cut network with one module, and others of its class that are affected, rewritten.

        If the module was rewritten already or cannot be, the one around it is.

        Raises
        ------
        CdlibError
            If even the whole network cannot be rewritten.
        """
        if not self._recorded:
            self._recorded = [self._record(samples) for samples in (2, 3)]
        why = f"{type(error).__name__}: {error}" if error else "its Python code computes something else"
        while True:
            if name not in self._done and all(not done or not name.startswith(f"{done}.") for done in self._done):
                kind = type(self._model.get_submodule(name))
                same = [other for other, module in self._model.named_modules() if type(module) is kind and self._affected(other)]
                same = [other for other in same if not any(_inside(other, outer) for outer in same)]
                try:
                    for other in dict.fromkeys([name, *same]):
                        if other not in self._done:
                            small = self._replace(small, other)
                    return small
                except _NotPossible as problem:
                    why = str(problem)
            if not name:
                line = " ".join(why.split())
                raise CdlibError(f"{type(self._model).__name__} cannot be cut so that it computes the same ({line}).")
            name = name.rpartition(".")[0]

    def _record(self, samples: int) -> Prediction:
        from cdlib.pruning.subnet import gone

        args = repeated(self._input, self._batch_dim, samples)
        self.args = self.args or args
        graph, error = run(self._model, args, on_meta=True)
        if error is not None:
            line = " ".join(str(error).split())
            raise CdlibError(
                f"{type(self._model).__name__} has code that does not follow the new widths, and cannot be rewritten, since "
                f"it does not run on {samples} samples without their numbers ({type(error).__name__}: {line})."
            ) from error
        done = walk(graph, self._training)
        return Prediction(done, gone(done, self._slices))

    def _affected(self, name: str) -> bool:
        prediction = self._recorded[0]
        return any(
            prediction.changes(op)
            for call in prediction.graph.calls
            if call.module == name
            for op in prediction.graph.ops[call.start : call.stop]
        )

    def _replace(self, small: nn.Module, name: str) -> nn.Module:
        two, three = self._recorded
        calls = [[call for call in p.graph.calls if call.module == name] for p in (two, three)]
        if not calls[0] or len(calls[0]) != len(calls[1]):
            raise _NotPossible(f"{name or 'the network'} is not called the same way for every number of samples")
        made = [_Writer(name, two, three, a, b) for a, b in zip(*calls, strict=True)]
        if any(writer.program != made[0].program for writer in made[1:]):
            raise _NotPossible(f"{name} is called for inputs of several sizes")
        original = small.get_submodule(name)
        new = Rewritten(original, made[0].program, made[0].constants)
        self._done.add(name)
        if not name:
            return new
        for module in list(small.modules()):
            for key, child in module._modules.items():
                if child is original:
                    module._modules[key] = new
        return small


class _NotPossible(Exception):
    """A module cannot be rewritten by itself."""


class _Writer:
    """Makes the program of one call of a module from recordings with two and with three samples."""

    def __init__(self, name: str, two: Prediction, three: Prediction, call: Call, other: Call) -> None:
        self.name, self.two, self.three = name, two, three
        self.constants: dict[str, Tensor] = {}
        self._slots: dict[int, int] = {}
        inputs = [v for v in leaves(call.inputs) if isinstance(v, Value)]
        others = [v for v in leaves(other.inputs) if isinstance(v, Value)]
        if call.stop - call.start != other.stop - other.start or len(inputs) != len(others):
            raise _NotPossible(f"{name or 'the network'} does not run the same operators for every number of samples")
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
        return _inside(call.module, self.name) and isinstance(call.outputs, Value) and inputs == [call.outputs]

    def _step(self, op: Op | Call, other: Op | Call) -> Step | None:
        if isinstance(op, Call):
            if not isinstance(op.outputs, Value) or op.outputs.index not in self._slots:
                return None
            return Step(self._local(op.module), (), {}, (self._slot(op.outputs),))
        assert isinstance(other, Op)
        if op.target is not other.target:
            raise _NotPossible(f"{self.name or 'the network'} does not run the same operators for every number of samples")
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
            raise _NotPossible(f"{self.name or 'the network'} computes a number from the number of samples")
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
        raise _NotPossible(f"{self.name} uses a tensor that was computed outside of it")


def _target(op: Op) -> Any:
    aten = torch.ops.aten
    if op.name in ("view", "_unsafe_view", "_reshape_alias"):
        return aten.reshape.default
    if op.name == "split":
        return aten.split_with_sizes.default
    return attention if op.name == "scaled_dot_product_attention" else op.target


def attention(**arguments: Any) -> Tensor:
    """Fused attention, looked up when it is called, so that a recording sees one operator."""
    return F.scaled_dot_product_attention(**arguments)


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


def _inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def _get(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module
