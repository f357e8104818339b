"""A network as a graph of tensors: which operators run, on what, in which module.

`cdlib.graph.capture` makes it; counting (`cdlib.complexity`) reads it. Nothing else in the package walks a network
in a way of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdlib.graph.trees import Leaf, leaves

Kind = Literal["input", "parameter", "buffer", "constant", "activation"]


@dataclass(frozen=True, eq=False)
class Value(Leaf):
    """A tensor that takes part in the run."""

    index: int  #: Position in `Graph.values`.
    shape: tuple[int, ...]  #: Its shape, for one sample.
    dtype: torch.dtype  #: Its element type.
    storage: int  #: Number of the memory block behind it, which a view has in common with its base.
    storage_bytes: int  #: Size of that memory block, in bytes.
    kind: Kind  #: An "activation" is computed from the input, a "constant" from anything else.
    name: str = ""  #: The parameter or buffer that this is, or is a view of; otherwise empty.

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Op:
    """One operator that ran."""

    index: int  #: Position in `Graph.ops`, the order of the run.
    target: Any  #: The ATen operator, for example ``torch.ops.aten.convolution.default``.
    module: str  #: Qualified name of the innermost module whose code called it; empty for the network itself.
    call: int  #: Number of that module's call, of which a shared module has several.
    args: tuple[Any, ...]  #: What it was called with, every tensor replaced by its `Value`.
    kwargs: dict[str, Any]  #: Likewise, by name.
    outputs: tuple[Value, ...]  #: What it returned. An in-place operator returns the `Value` that it was given.
    gradients: bool | str = True  #: Whether code had not turned them off; the name of the autograd.Function it is in.

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload, for example ``convolution``."""
        return str(self.target.__name__).split(".")[0]

    @cached_property
    def inputs(self) -> tuple[Value, ...]:
        """The tensors it reads, in the order of the arguments."""
        return tuple(leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value))

    @cached_property
    def does_work(self) -> bool:
        """Whether it computes something, in place or not, instead of looking at a tensor in another shape."""
        read = {value.storage for value in self.inputs}
        return self.target._schema.is_mutable or any(value.storage not in read for value in self.outputs)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module, during which the operators ``ops[start:stop]`` ran."""

    module: str  #: Qualified name of the module.
    start: int
    stop: int
    inputs: tuple[Any, Any]  #: Its positional and its keyword arguments, every tensor replaced by its `Value`.
    outputs: Any  #: What it returned, likewise.
    gradients: bool | str = True  #: As for an operator, where it was called.


@dataclass(eq=False)
class Graph:
    """A captured network: operators over values.

    `calls` are the calls of modules in the order in which they returned, that of the network last; `constants` holds
    the tensors that are neither input nor parameter nor buffer nor computed, by the index of their value.
    """

    ops: list[Op] = field(default_factory=list)  #: In the order of the run.
    values: list[Value] = field(default_factory=list)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    calls: list[Call] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)  #: Every module of the network by its qualified name.
    constants: dict[int, Tensor] = field(default_factory=dict)
    on_meta: bool = True  #: Whether the run was made of shapes only (True) or of real numbers.
    draws: set[str] = field(default_factory=set)  #: Modules whose code drew numbers in Python (recorded closely only).
    failed_in: str | None = None  #: If the run raised, the name of the innermost module that did.

    @cached_property
    def follows_numbers(self) -> bool:
        """Whether the shapes or the course of the run may be others for an input of the same shape."""
        return not self.on_meta and any(_follows_numbers(op) for op in self.ops)


def _follows_numbers(op: Op) -> bool:
    if not {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}.intersection(op.target.tags):
        return False
    computed = [value.dtype for value in op.inputs if value.kind in ("input", "activation")]
    return torch.bool in computed or torch.uint8 in computed if op.name == "index" else bool(computed)
