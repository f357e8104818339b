"""Write the code of a module from recordings of one call of it with few samples and with more.

What is the same in both is fixed; a size that differs counts samples. Submodules are called, operators of the module's
own code are written out. The code is that of a `torch.fx.Graph`.
"""

from __future__ import annotations

import itertools
import keyword
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from cdlib.graph import Call, Op, Value, leaves, map_tensors
from cdlib.surgery.rewriting.module import Arguments, PerSample, Rewritten, Takes
from cdlib.surgery.rewriting.recording import SAMPLES, NotPossible, Recording, values

_SKIPPED = {"as_strided_", "empty"}


class Writer:
    """Writes the code of one call of a module.

    `names` gives the module's own names of its parameters and buffers by their names in the recordings; `module` is the
    one that will run it.

    Attributes
    ----------
    code : str
        A function of the module, the number of samples and the tensors among its arguments.
    takes : Takes
        What it is called with.
    types : dict
        The classes of named tuples that the code makes, by the names that it has for them.
    constants : dict
        The other tensors that the code reads, by names that the module does not have.

    Raises
    ------
    NotPossible
        If the code would depend on something else than inputs and parameters.
    """

    def __init__(self, few: Recording, more: Recording, names: Mapping[str, str], module: nn.Module) -> None:
        self._few, self._more, self._names, self._module = few, more, names, module
        self.constants: dict[str, Tensor] = {}
        self._called = few.name or "the network"
        self.takes, inputs = self._takes()
        self._graph, self._nodes, self._sizes = fx.Graph(), dict[int, fx.Node](), dict[PerSample, fx.Node]()
        self._samples = self._graph.placeholder("samples")
        given = [self._graph.placeholder(f"x{k}" if k else "x") for k in range(len(inputs))]
        self._nodes.update({inputs[k].index: given[k] for k in self.takes.first})
        floats = [k for k, value in enumerate(inputs) if value.dtype.is_floating_point]
        self._dtype = inputs[floats[0]].dtype if floats else None
        self._of_input: dict[str, Any] = {
            "dtype": given[floats[0]] if floats else None,
            "device": given[0] if given else None,
        }
        self._gradients = True
        self._caller: fx.Node | None = None
        if few.graph.draws & few.written_out():
            raise self._differs("draws random numbers of Python or NumPy")
        self._body()
        self._turn_gradients(True)
        self._graph.output(map_tensors(self._leaf, few.call.outputs, Value))
        text = self._graph.python_code("self")
        self.code = _with_getattr(text.src.strip() + "\n")
        self.types = {name: kind for name, kind in text.globals.items() if isinstance(kind, type) and name in self.code}

    def same_as(self, other: Writer) -> bool:
        """Whether another code is the same, with the same constants."""
        mine, its = ((w.code, w.takes.shapes, w.takes.first, list(w.constants)) for w in (self, other))
        return mine == its and all(torch.equal(t, other.constants[name]) for name, t in self.constants.items())

    def _takes(self) -> tuple[Takes, list[Value]]:
        """What the code takes, and the tensors among that in the recording with few samples."""
        module, few, more = self._module, self._few, self._more
        arguments = module.takes.arguments if isinstance(module, Rewritten) else Arguments(module)
        given = arguments(*few.call.inputs)
        inputs, others = values(given), values(arguments(*more.call.inputs))
        if few.call.stop - few.call.start != more.call.stop - more.call.start or len(inputs) != len(others):
            raise self._differs()
        shapes = tuple(
            tuple(self._size(a, b) for a, b in zip(few.prediction.shape(x), more.prediction.shape(y), strict=True))
            for x, y in zip(inputs, others, strict=True)
        )
        indices = [value.index for value in inputs]
        first = [indices.index(index) for index in indices]
        wanted = [] if few.name else [_wanted(leaf) for leaf in leaves(given)]
        return Takes(arguments, wanted, shapes, first), inputs

    def _body(self) -> None:
        few, more = self._few, self._more
        children = list(zip(few.children(), more.children(), strict=False))
        shift, at = more.call.start - few.call.start, few.call.start
        for child, other in (*children, (None, None)):
            stop = few.call.stop if child is None else child.start
            for k in range(at, stop):
                self._operator(few.graph.ops[k], more.graph.ops[k + shift])
            if child is not None and other is not None:
                if (child.module, child.start + shift, child.stop + shift) != (other.module, other.start, other.stop):
                    raise self._differs()
                self._child(child, other)
                at = child.stop

    def _child(self, call: Call, other: Call) -> None:
        """Call a submodule."""
        self._turn_gradients(call.gradients)
        (args, kwargs), name = self._merge(call.inputs, other.inputs), call.module
        local = name[len(self._few.name) + 1 :] if self._few.name else name
        self._take(self._graph.call_module(local, args, kwargs), call.outputs)

    def _take(self, node: fx.Node, nest: Any) -> None:
        """Note that a node is a value, or a nest of them."""
        if isinstance(nest, Value):
            self._nodes[nest.index] = node
        elif isinstance(nest, tuple | list | dict):
            for key, item in nest.items() if isinstance(nest, dict) else enumerate(nest):
                if values(item):
                    self._take(self._graph.call_function(operator.getitem, (node, key)), item)

    def _operator(self, op: Op, other: Op) -> None:
        if op.target is not other.target:
            raise self._differs()
        if op.target.namespace == "profiler" or self._is_masked(op):
            return
        if op.name == "_local_scalar_dense":
            raise self._differs("computes with a number that it reads out of a tensor")
        if op.name in _SKIPPED and (op.name != "empty" or not op.outputs[0].numel):
            return
        merged = self._merge(self._few.prediction.arguments(op), self._more.prediction.arguments(other))
        if merged.get("device") is not None:
            merged["device"] = self._attribute("device")
        target = _target(op)
        if target is torch.ops.aten.reshape.default:
            merged["shape"] = merged.pop("size")
        schema = op.target._schema if target is attention else target._schema
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in schema.arguments:
            value = merged[argument.name]
            if argument.has_default_value() and not _has_node(value) and value == argument.default_value:
                continue
            if argument.kwarg_only or kwargs or len(args) < schema.arguments.index(argument):
                kwargs[argument.name] = value
            else:
                args.append(value)
        self._turn_gradients(op.gradients)
        node = self._graph.call_function(target, tuple(args), kwargs)
        outputs = op.outputs
        self._take(node, outputs[0] if len(outputs) == 1 and not _returns_list(op) else outputs)

    def _turn_gradients(self, on: bool | str) -> None:
        """Write that gradients are turned off, or are again what they are for the caller."""
        if isinstance(on, str):
            raise self._differs(f"computes in the autograd.Function {on}, whose gradients its operators do not show")
        if on == self._gradients:
            return
        if self._caller is None:
            self._caller = self._graph.call_function(torch.is_grad_enabled)
        self._graph.call_function(torch._C._set_grad_enabled, (self._caller if on else False,))
        self._gradients = on

    def _is_masked(self, op: Op) -> bool:
        """Whether an operator multiplies a parameter and its mask (`torch.nn.utils.prune`), as a hook then does."""
        names = sorted(self._names.get(value.name, "") for value in op.inputs)
        name = names[0].removesuffix("_mask") if names else ""
        if op.name != "mul" or names != [f"{name}_mask", f"{name}_orig"] or "." in name:
            return False
        self._nodes[op.outputs[0].index] = self._graph.get_attr(name)
        return True

    def _merge(self, a: Any, b: Any) -> Any:
        """What stands in the code for an argument seen with few samples and with more."""
        if isinstance(a, Value):
            return self._leaf(a)
        if type(a) is not type(b):
            raise self._differs("computes a number from the number of samples")
        if isinstance(a, list | tuple | dict) and len(a) != len(b):
            raise self._differs()
        if isinstance(a, list | tuple):
            return type(a)(self._merge(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict):
            return {key: self._merge(a[key], b[key]) for key in a}
        if type(a) is int:
            return self._of_samples(self._size(a, b))
        if isinstance(a, torch.dtype) and a == self._dtype:
            return self._attribute("dtype")
        if a != b and a == a:
            raise self._differs("computes a number from the number of samples")
        return a

    def _size(self, a: int, b: int) -> int | PerSample:
        """The size that is `a` with few samples and `b` with more."""
        few, more = SAMPLES
        each, rest = divmod(b - a, more - few)
        if rest:
            raise self._differs("has a size that does not grow with the number of samples")
        return PerSample(a - few * each, each) if each else a

    def _of_samples(self, size: int | PerSample) -> Any:
        if not isinstance(size, PerSample):
            return size
        if size not in self._sizes:
            node = self._samples
            for function, number, nothing in ((operator.mul, size.each, 1), (operator.add, size.fixed, 0)):
                node = node if number == nothing else self._graph.call_function(function, (node, number))
            self._sizes[size] = node
        return self._sizes[size]

    def _attribute(self, name: str) -> Any:
        """The type or the device of the inputs (the recording knows no device)."""
        if self._of_input[name] is None:
            raise NotPossible(f"{self._called} makes a tensor and takes none, whose {name} it could have")
        return self._graph.call_function(getattr, (self._of_input[name], name))

    def _leaf(self, value: Value) -> fx.Node:
        if value.index in self._nodes:
            return self._nodes[value.index]
        held = self._few.prediction.graph.inputs[0].index
        if value.kind in ("parameter", "buffer") and value.index < held and value.name in self._names:
            return self._graph.get_attr(self._names[value.name])
        if value.index in self._few.graph.constants:
            if not self._few.graph.on_meta:
                raise NotPossible(f"{self._called} uses a tensor that may have been made of the numbers of its input")
            names = (f"_constant_{k}" for k in itertools.count())
            name = next(n for n in names if not hasattr(self._module, n) and n not in self.constants)
            self.constants[name] = self._few.graph.constants[value.index].detach().clone()
            self._nodes[value.index] = self._graph.get_attr(name)
            return self._nodes[value.index]
        raise NotPossible(f"{self._called} uses a tensor that was computed outside of it")

    def _differs(self, what: str = "does not run the same operators for every number of samples") -> NotPossible:
        return NotPossible(f"{self._called} {what}")


def attention(**arguments: Any) -> Tensor:
    """Stands for `scaled_dot_product_attention`, which code looks up when it runs: a recording sees one operator."""
    raise NotImplementedError


attention.__module__, attention.__name__ = "torch.nn.functional", "scaled_dot_product_attention"


def _wanted(leaf: Any) -> Any:
    """What stands for a leaf of a call in `Takes.leaves`."""
    if isinstance(leaf, Value):
        return Tensor
    return leaf if isinstance(leaf, bool | int | float | str | None) else ...


def _target(op: Op) -> Any:
    if op.name in ("view", "_unsafe_view", "_reshape_alias"):
        return torch.ops.aten.reshape.default
    if op.name == "split":
        return torch.ops.aten.split_with_sizes.default
    return attention if op.name == "scaled_dot_product_attention" else op.target


def _with_getattr(code: str) -> str:
    """Code that reads attributes which are called like keywords of Python by `getattr`."""
    words = "|".join(keyword.kwlist)
    while (
        found := re.sub(rf"((?:self|getattr\([^()]*\))(?:\.\w+)*?)\.({words})\b", r'getattr(\1, "\2")', code)
    ) != code:
        code = found
    return code


def _returns_list(op: Op) -> bool:
    return isinstance(op.target._schema.returns[0].type, torch.ListType)


def _has_node(nest: Any) -> bool:
    found: list[fx.Node] = []
    map_tensors(found.append, nest, fx.Node)
    return bool(found)
