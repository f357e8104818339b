"""A module that runs recorded operators instead of Python code that does not follow new widths.

A `Rewritten` module keeps the parameters, buffers and submodules of the module in whose place it stands, under the same
names. It does what the recording did, for inputs of the same size but any number of samples.
`cdlib.surgery.rewriting.writer` makes its program from recordings, `cdlib.surgery.rewriting.rewriter` decides where one
is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.errors import CdlibError
from cdlib.graph import map_tensors, tensors


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
        if isinstance(original, nn.MultiheadAttention):
            self._qkv_same_embed_dim = False  # else PyTorch's transformer layers pass by it, to a fused kernel
        self.training = original.training
        self.stands_for = getattr(original, "stands_for", type(original).__name__)
        self.program = program
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def extra_repr(self) -> str:
        """What it stands for and for which sizes."""
        shapes = ", ".join(
            "x".join("N" if isinstance(n, PerSample) else str(n) for n in s) for s in self.program.shapes
        )
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
            filled, named = (map_tensors(fill, tree, PLACES) for tree in (step.args, step.kwargs))
            if step.follows is not None:
                named["training"] = self.get_submodule(step.follows).training
            result = step.target(*filled, **named)
            slots.update(zip(step.outputs, tensors(result), strict=False))
            for number in step.done_with:
                del slots[number]
        return map_tensors(fill, program.outputs, PLACES)

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


PLACES = (Slot, Held, PerSample, Device)


def attention(**arguments: Any) -> Tensor:
    """Fused attention, looked up when it is called, so that a recording sees one operator."""
    return F.scaled_dot_product_attention(**arguments)


def _get(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module
