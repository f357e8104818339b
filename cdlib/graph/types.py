"""A network as a graph of tensors: which operators run, on what, in which module.

`cdlib.graph.capture` makes it; counting (`cdlib.complexity`) reads it. Nothing else in the package walks a network
in a way of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdlib.graph.trees import Leaf, leaves, map_tensors

Kind = Literal["input", "parameter", "buffer", "constant", "activation"]


@dataclass(frozen=True, eq=False)
class Value(Leaf):
    """A tensor that takes part in the run.

    Attributes
    ----------
    index : int
        Position in `Graph.values`.
    shape : tuple of int
        Its shape, for one sample.
    dtype : torch.dtype
        Its element type.
    storage : int
        Number of the memory block behind it: a view and its base have the same.
    storage_bytes : int
        Size of that memory block, in bytes.
    kind : str
        "input", "parameter", "buffer"; "activation" (computed from the input) or "constant" (from anything else).
    name : str
        The parameter or buffer that this is, or is a view of; otherwise empty.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    storage_bytes: int
    kind: Kind
    name: str = ""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Op:
    """One operator that ran.

    Attributes
    ----------
    index : int
        Position in `Graph.ops`, the order of the run.
    target : callable
        The ATen operator, for example ``torch.ops.aten.convolution.default``.
    module : str
        Qualified name of the innermost module whose code called it; empty for the network itself.
    call : int
        Number of that module's call: a shared module has several.
    args, kwargs
        What it was called with, every tensor replaced by its `Value`.
    outputs : tuple of Value
        What it returned. An in-place operator returns the `Value` that it was given.
    """

    index: int
    target: Any
    module: str
    call: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value, ...]

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
    """One call of a module.

    Attributes
    ----------
    module : str
        Qualified name of the module.
    start, stop : int
        The operators that ran meanwhile are ``ops[start:stop]``.
    inputs : tuple
        Its positional and its keyword arguments, every tensor replaced by its `Value`.
    outputs
        What it returned, likewise.
    """

    module: str
    start: int
    stop: int
    inputs: tuple[Any, Any]
    outputs: Any


@dataclass(eq=False)
class Graph:
    """A captured network: `ops` in the order of the run, over `values`.

    `calls` are the calls of modules in the order in which they returned, that of the network last; `modules` maps the
    qualified name of every module of the network to the module; `constants` holds the tensors that are neither input
    nor parameter nor buffer nor computed, by the index of their value; `on_meta` says whether the run was made of
    shapes only (True) or of real numbers. If the run raised, `failed_in` names the innermost module that did.
    """

    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    calls: list[Call] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    on_meta: bool = True
    failed_in: str | None = None

    @cached_property
    def follows_numbers(self) -> bool:
        """Whether the shapes or the course of the run may be others for an input of the same shape."""
        return not self.on_meta and any(_follows_numbers(op) for op in self.ops)


def _follows_numbers(op: Op) -> bool:
    if not {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}.intersection(op.target.tags):
        return False
    computed = [value.dtype for value in op.inputs if value.kind in ("input", "activation")]
    return torch.bool in computed or torch.uint8 in computed if op.name == "index" else bool(computed)


def moved_after(graph: Graph, other: Graph) -> Graph:
    """Return another recording of the same network with its numbers moved: both have only their tensors in common."""
    values, storages = len(graph.values), max((v.storage for v in graph.values), default=0) + 1
    held = graph.inputs[0].index if graph.inputs else 0

    def moved(value: Value) -> Value:
        if value.index < held:
            return value
        return replace(value, index=value.index + values, storage=value.storage + storages)

    every = {value.index: moved(value) for value in other.values}
    first = len(graph.ops) + 1
    ops = []
    for op in other.ops:
        args, kwargs, outputs = map_tensors(lambda value: every[value.index], (op.args, op.kwargs, op.outputs), Value)
        ops.append(Op(op.index + first, op.target, op.module, op.call, args, kwargs, outputs))
    outputs = tuple(every[value.index] for value in other.outputs)
    return Graph(ops=ops, values=list(every.values()), outputs=outputs, modules=other.modules)
