"""Write down every operator that PyTorch dispatches, and the module that it was called in; for `tracing`."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cdlib.graph.inputs import Inputs
from cdlib.graph.state import drawn
from cdlib.graph.trees import map_tensors, tensors
from cdlib.graph.types import Call, Graph, Kind, Op, Value
from cdlib.torch_state import bytes_held


class Recorder(TorchDispatchMode):
    """Sees every operator of the run. Tensors are kept until the end, so that an `id` names one tensor only."""

    def __init__(self, model: nn.Module, on_meta: bool, closely: bool = False) -> None:
        super().__init__()
        self.closely, self.gradients = closely, True
        self.function = ""  # the autograd.Function that runs, if one does
        self._drawn, self._inference_around = drawn() if closely else None, torch.is_inference_mode_enabled()
        modules = dict(model.named_modules())
        self.graph = Graph(modules=modules, on_meta=on_meta)
        self._module_names = {id(module): name for name, module in modules.items()}
        self._stack: list[tuple[str, int, int, bool | str]] = [
            ("", 0, 0, True)
        ]  # calls: module, number, first op, mode
        self._calls = 0
        self._keep: list[Tensor] = []
        self._values: dict[int, Value] = {}
        self._storages: dict[int, int] = {}
        self._memory: dict[int, tuple[int, int]] = {}
        self._numbers = count()
        self._twins: dict[int, Tensor] = {}
        self._computed: set[int] = set()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._new(parameter, "parameter", name)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            self._new(buffer, "buffer", name)

    # Modules. Global hooks, so that modules which share their children are seen too.

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """Note that a module is called."""
        self._look_at_draws()
        self._calls += 1
        name = self._module_names.get(id(module), self._stack[-1][0])
        self._stack.append((name, self._calls, len(self.graph.ops), self._mode()))

    def leave_module(self, module: nn.Module, args: Any, *kwargs_and_output: Any) -> None:
        """Note that the last module called returns. There are no keyword arguments if it raised."""
        self._look_at_draws()
        name, _, start, mode = self._stack.pop()
        if len(kwargs_and_output) != 2 and self.graph.failed_in is None:
            self.graph.failed_in = name
        elif len(kwargs_and_output) == 2 and id(module) in self._module_names:
            with DisableTorchFunction():
                given = map_tensors(self.value, (args, kwargs_and_output[0]))
                output = map_tensors(self.value, kwargs_and_output[1])
            self.graph.calls.append(Call(name, start, len(self.graph.ops), given, output, mode))

    def _mode(self) -> bool | str:
        return self.function or (self.gradients and torch.is_inference_mode_enabled() == self._inference_around)

    def _look_at_draws(self) -> None:
        if self.closely and (now := drawn()) != self._drawn:
            self.graph.draws.add(self._stack[-1][0])
            self._drawn = now

    # Tensors.

    def enter_inputs(self, inputs: Inputs) -> Inputs:
        """Return what to call the network with: copies of its arguments, of shapes only or of numbers too."""
        inputs = inputs.map(_to_meta if self.graph.on_meta else torch.clone)
        self.graph.inputs = tuple(dict.fromkeys(self._new(t, "input") for t in tensors(inputs)))
        return inputs

    def value(self, t: Tensor) -> Value:
        """Return the value that stands for a tensor."""
        if id(t) not in self._values:
            self.graph.constants[self._new(t, "constant").index] = t
        return self._values[id(t)]

    def _new(self, t: Tensor, kind: Kind, name: str = "") -> Value:
        if id(t) in self._values:
            return self._values[id(t)]
        key, size = self._memory[id(t)] = _memory(t)
        storage = self._storages.setdefault(key, next(self._numbers))
        value = Value(len(self.graph.values), tuple(t.shape), t.dtype, storage, size, kind, name)
        self.graph.values.append(value)
        self._values[id(t)] = value
        self._keep.append(t)
        return value

    def _forget_if_resized(self, t: Tensor) -> None:
        """Take a tensor for a new one if its shape or memory changed since it was seen (`resize_`, `out=`)."""
        if id(t) in self._values and (tuple(t.shape), *_memory(t)) != (self._values[id(t)].shape, *self._memory[id(t)]):
            key, size = self._memory[id(t)]
            if _memory(t)[0] == key and _memory(t)[1] != size:
                self._storages.pop(key, None)
            del self._values[id(t)]

    def _twin(self, t: Tensor) -> Tensor:
        """The meta tensor that stands for a real one, with the same `Value`."""
        if t.is_meta:
            return t
        if id(t) not in self._twins:
            twin = self._twins[id(t)] = _to_meta(t)
            value = self.value(t)
            self._values[id(twin)] = value
            self._memory[id(twin)] = _memory(twin)
            self._storages[self._memory[id(twin)][0]] = value.storage
            self._keep.append(twin)
        return self._twins[id(t)]

    # Operators.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler, a second's work, to keep it out of here: `in_mode` does."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with DisableTorchFunction():  # the mode that sees attention would see every look at a tensor here
            kwargs = kwargs or {}
            given = tensors((args, kwargs))
            if self.graph.on_meta and any(t.is_meta for t in given):
                if not all(t.is_meta for t in given):
                    args, kwargs = map_tensors(self._twin, (args, kwargs))
                kwargs = {k: torch.device("meta") if k == "device" and v is not None else v for k, v in kwargs.items()}
                result = self._shapes_of(func, args, kwargs)
            else:
                result = func(*args, **kwargs)
            self.record(func, args, kwargs, result)
            if func._schema.is_mutable:
                for t in given:
                    twin = self._twins.get(id(t), t)
                    if twin.shape != t.shape:
                        t.resize_(twin.shape)
                    self._values[id(t)] = self._values[id(twin)]
            return result

    def _shapes_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on meta tensors, or repeat what it gave for the same shapes before.

        PyTorch works out shapes in Python, which takes most of a capture; networks repeat their blocks, and who
        searches for widths captures one network many times.
        """
        if torch.Tag.pointwise in func.tags and func._schema.is_mutable and "out" not in kwargs:
            return args[0]  # in place, element by element: nothing but numbers changes
        if func._schema.is_mutable or any(returned.alias_info for returned in func._schema.returns):
            return func(*args, **kwargs)
        if func in _LIKE_INPUT and args[0].is_floating_point():
            return torch.empty_like(args[0])
        if func is torch.ops.aten.native_batch_norm.default and not args[5]:  # at inference it saves no statistics
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        key = (func, torch.get_default_dtype(), _key(args), _key(kwargs))
        if key in _seen:
            return map_tensors(_to_meta, _seen[key])
        result = func(*args, **kwargs)
        if {_memory(t)[0] for t in tensors(result)}.isdisjoint(_memory(t)[0] for t in tensors((args, kwargs))):
            if len(_seen) >= 10_000:
                _seen.clear()
            _seen[key] = map_tensors(_to_meta, result)  # other tensors: those of the run may yet be resized
        return result  # or a view, of an operator that does not say so (`_unsafe_view`)

    def attention(self, function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`scaled_dot_product_attention` as one operator."""
        on_meta = self.graph.on_meta and any(t.is_meta for t in (query, key, value))
        with _disable_current_modes():
            if on_meta:
                query, key, value = (self._twin(t) for t in (query, key, value))
                several = (query,) if kwargs.get("enable_gqa") else (query, key, value)
                batch = torch.broadcast_shapes(*(t.shape[:-2] for t in several))
                result = query.new_empty(*batch, query.shape[-2], value.shape[-1])
            else:
                result = function(query, key, value, *args, **kwargs)
        self.record(torch.ops.aten.scaled_dot_product_attention.default, (query, key, value, *args), kwargs, result)
        return result

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Write down that an operator ran."""
        read: dict[int, Value] = {}

        def reads(t: Tensor) -> Value:
            value = self.value(t)
            read[value.storage] = value
            return value

        args, kwargs = map_tensors(reads, (args, kwargs))
        computed = any(value.kind == "input" or value.storage in self._computed for value in read.values())
        returned = tensors(result)
        if func._schema.is_mutable:
            for t in returned:
                self._forget_if_resized(t)
        outputs = tuple(self._output(t, read, "activation" if computed else "constant") for t in returned)
        module, call, *_ = self._stack[-1]
        self.graph.ops.append(Op(len(self.graph.ops), func, module, call, args, kwargs, outputs, self._mode()))

    def _output(self, t: Tensor, read: dict[int, Value], kind: Kind) -> Value:
        value = self._new(t, kind)
        base = read.get(value.storage, value)
        if base is not value and base.kind != "constant":  # a view is what its base is
            value = replace(value, kind=base.kind, name=base.name)
        elif value.kind == "constant":  # unless something computed was written into it just now
            value = replace(value, kind=kind)
        if value.kind == "activation":
            self._computed.add(value.storage)
        self._values[id(t)] = self.graph.values[value.index] = value
        return value


_seen: dict[Any, Any] = {}  # what operators gave for the shapes of their inputs, in all captures of this process

# Activation functions and normalisation have an output like their input; PyTorch takes up to milliseconds to find out.
_LIKE_INPUT = {
    getattr(torch.ops.aten, name).default
    for name in ("relu", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "sigmoid", "tanh")
}


def _key(tree: Any) -> Any:
    """Arguments as a dictionary key: tensors by shape, numbers together with their type."""
    if isinstance(tree, Tensor):
        return tree.size(), tree.stride(), tree.dtype
    if isinstance(tree, tuple | list):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((name, _key(item)) for name, item in tree.items())
    return type(tree), tree


def _memory(t: Tensor) -> tuple[int, int]:
    """A number for the memory block behind a tensor, and its size in bytes."""
    if t.layout == torch.strided:
        try:
            return t.untyped_storage()._cdata, t.untyped_storage().nbytes()
        except (NotImplementedError, RuntimeError):  # tensors of other backends, without a storage
            pass
    with _disable_current_modes():
        return id(t), bytes_held(t)


def _to_meta(t: Tensor) -> Tensor:
    """A new tensor of the same shape and type, without numbers."""
    if t.layout != torch.strided:
        raise NotImplementedError(f"a tensor of layout {t.layout} cannot be run on its shape alone")
    return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")
