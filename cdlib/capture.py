"""Capture a network as a `cdlib.graph.Graph` by running it once.

`capture` runs the network in evaluation mode and for one sample, and writes down every ATen operator that PyTorch
dispatches. Because operators are recorded and not modules, functional calls, bare parameters, shared modules and
in-place operators are all seen.

The run happens on *meta* tensors, which have shapes but no numbers, so that it costs neither arithmetic nor memory;
only operators fed by weights and constants alone are computed. A network whose course depends on numbers (a detector's
`nonzero`, say), or that uses an operator without a shape rule (packed int8 weights), is run on real tensors instead.
Fused attention (`scaled_dot_product_attention`) is kept as one operator, as the CPU and GPU kernels run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cdlib.errors import CdlibError
from cdlib.graph import Graph, Kind, Op, Value, leaves, map_tensors, tensors

ExampleInput = Tensor | Sequence[Any]


def capture(model: nn.Module, example_input: ExampleInput, *, batch_dim: int | None = 0) -> Graph:
    """Run `model` once on one sample of `example_input` and return what ran.

    Parameters
    ----------
    model : nn.Module
        Any network. It is run in evaluation mode without gradients and left as it was found.
    example_input : tensor or tuple
        What the network is called with: a tensor, or a tuple of its positional arguments.
    batch_dim : int or None, default 0
        The dimension that counts samples. Every tensor as long there as the first one is cut to one sample. None: the
        input has no such dimension and is taken whole.

    Returns
    -------
    Graph

    Raises
    ------
    CdlibError
        If the input is no tensor or tuple, or the network raises when it is run.
    """
    if not isinstance(model, nn.Module):
        raise CdlibError(f"model is {type(model).__name__!r}, not a torch.nn.Module; pass the network itself.")
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the network that we want to see
    args = _one_sample(example_input, batch_dim)
    try:
        return _run(model, args, on_meta=True)
    except Exception as on_meta:
        if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
            raise _failure(model, args, batch_dim, on_meta) from on_meta
    try:
        return _run(model, args, on_meta=False)
    except Exception as real:
        raise _failure(model, args, batch_dim, real) from real


def _one_sample(example_input: ExampleInput, batch_dim: int | None) -> tuple[Any, ...]:
    args = (example_input,) if isinstance(example_input, Tensor) else example_input
    if not isinstance(args, tuple | list) or not tensors(args):
        raise CdlibError(
            f"example_input is {type(example_input).__name__!r}; pass a tensor, or a tuple of the network's arguments."
        )
    first = tensors(args)[0]
    if batch_dim is None or first.dim() == 0:
        return tuple(args)
    if not -first.dim() <= batch_dim < first.dim():
        raise CdlibError(f"batch_dim={batch_dim} is no dimension of an input of shape {tuple(first.shape)}.")
    if first.shape[batch_dim] == 0:
        raise CdlibError(f"example_input of shape {tuple(first.shape)} holds no sample; pass at least one.")
    samples = first.shape[batch_dim]

    cuts: dict[int, Tensor] = {}  # the same tensor given twice stays one tensor

    def cut(t: Tensor) -> Tensor:
        if id(t) not in cuts:
            has_batch = -t.dim() <= batch_dim < t.dim() and t.shape[batch_dim] == samples
            cuts[id(t)] = t.narrow(batch_dim, 0, 1) if has_batch else t
        return cuts[id(t)]

    return tuple(map_tensors(cut, tuple(args)))


def _failure(model: nn.Module, args: tuple[Any, ...], batch_dim: int | None, error: Exception) -> CdlibError:
    shapes = ", ".join(str(tuple(a.shape)) for a in tensors(args))
    lines = str(error).strip().splitlines() or ["no message"]
    hint = "" if batch_dim is None else f" (one sample, cut along dimension {batch_dim}; batch_dim=None keeps it whole)"
    return CdlibError(
        f"{type(model).__name__} cannot run on an input of shape {shapes}{hint}: {type(error).__name__}: {lines[0]}. "
        "Check the shape and type of the input, and that the network runs on it."
    )


def _run(model: nn.Module, args: tuple[Any, ...], *, on_meta: bool) -> Graph:
    recorder = _Recorder(model, on_meta)
    args = recorder.enter_inputs(args)
    with _as_at_inference(model, recorder), recorder:
        outputs = model(*args)
    recorder.graph.outputs = tuple(recorder.value(t) for t in tensors(outputs))
    return recorder.graph


@contextmanager
def _as_at_inference(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Evaluation mode, no gradients, no rerouting of attention, calls of modules reported; all undone on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    attention = F.scaled_dot_product_attention
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as undo:
        undo.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        for module, training in modes:
            undo.callback(setattr, module, "training", training)
            module.training = False
        hooks = (
            register_module_forward_pre_hook(recorder.enter_module),
            register_module_forward_hook(recorder.leave_module, always_call=True),
        )
        for hook in hooks:
            undo.callback(hook.remove)
        undo.enter_context(
            mock.patch.object(F, "scaled_dot_product_attention", lambda *a, **k: recorder.attention(attention, *a, **k))
        )
        undo.enter_context(torch.no_grad())
        yield


class _Recorder(TorchDispatchMode):
    """Sees every operator of the run. Tensors are kept until the end, so that an `id` names one tensor only."""

    def __init__(self, model: nn.Module, on_meta: bool) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self.graph = Graph(modules=modules, on_meta=on_meta)
        self._module_names = {id(module): name for name, module in modules.items()}
        self._stack: list[tuple[str, int]] = [("", 0)]
        self._calls = 0
        self._keep: list[Tensor] = []
        self._values: dict[int, Value] = {}
        self._storages: dict[int, int] = {}
        self._twins: dict[int, Tensor] = {}
        self._seen: dict[Any, Any] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._new(parameter, "parameter", name)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            self._new(buffer, "buffer", name)

    # Modules. Global hooks, so that modules which share their children are seen too.

    def enter_module(self, module: nn.Module, args: Any) -> None:
        self._calls += 1
        self._stack.append((self._module_names.get(id(module), self._stack[-1][0]), self._calls))

    def leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    # Tensors.

    def enter_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.graph.on_meta:
            args = map_tensors(_to_meta, args)
        self.graph.inputs = tuple(self._new(t, "input") for t in tensors(args))
        return args

    def value(self, t: Tensor) -> Value:
        return self._values[id(t)] if id(t) in self._values else self._new(t, "constant")

    def _new(self, t: Tensor, kind: Kind, name: str = "") -> Value:
        if id(t) in self._values:
            return self._values[id(t)]
        try:
            key, size = t.untyped_storage()._cdata, t.untyped_storage().nbytes()
        except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
            key, size = id(t), t.element_size() * t.numel()
        storage = self._storages.setdefault(key, len(self._storages))
        value = Value(len(self.graph.values), tuple(t.shape), t.dtype, storage, size, kind, name)
        self.graph.values.append(value)
        self._values[id(t)] = value
        self._keep.append(t)
        return value

    def _twin(self, t: Tensor) -> Tensor:
        """The meta tensor that stands for a real one, with the same `Value`."""
        if t.is_meta:
            return t
        if id(t) not in self._twins:
            twin = self._twins[id(t)] = _to_meta(t)
            value = self.value(t)
            self._values[id(twin)] = value
            self._storages[twin.untyped_storage()._cdata] = value.storage
            self._keep.append(twin)
        return self._twins[id(t)]

    # Operators.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.graph.on_meta and any(t.is_meta for t in tensors((args, kwargs))):
            args, kwargs = map_tensors(self._twin, (args, kwargs))
            kwargs = {k: torch.device("meta") if k == "device" and v is not None else v for k, v in kwargs.items()}
            result = self._shapes_of(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        self.record(func, args, kwargs, result)
        return result

    def _shapes_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on meta tensors, or repeat what it gave for the same shapes before.

        PyTorch works out shapes in Python, which takes most of a capture; networks repeat their blocks.
        """
        if torch.Tag.pointwise in func.tags and func._schema.is_mutable and "out" not in kwargs:
            return args[0]  # in place, element by element: nothing but numbers changes
        if func._schema.is_mutable or any(returned.alias_info for returned in func._schema.returns):
            return func(*args, **kwargs)
        if func in _LIKE_INPUT:
            return torch.empty_like(args[0])
        if func is torch.ops.aten.native_batch_norm.default and not args[5]:  # at inference it saves no statistics
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        key = (func, _key(args), _key(kwargs))
        if key in self._seen:
            return map_tensors(_Shape.empty, self._seen[key], _Shape)
        result = func(*args, **kwargs)
        self._seen[key] = map_tensors(_Shape, result)
        return result

    def attention(self, function: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`scaled_dot_product_attention` as one operator."""
        on_meta = self.graph.on_meta and any(t.is_meta for t in (query, key, value))
        with _disable_current_modes():
            if on_meta:
                query, key, value = (self._twin(t) for t in (query, key, value))
                result = query.new_empty(*query.shape[:-1], value.shape[-1])
            else:
                result = function(query, key, value, *args, **kwargs)
        self.record(torch.ops.aten.scaled_dot_product_attention.default, (query, key, value, *args), kwargs, result)
        return result

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        args, kwargs = map_tensors(self.value, (args, kwargs))
        read = {leaf.storage: leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Value)}
        outputs = tuple(self._output(t, read) for t in tensors(result))
        module, call = self._stack[-1]
        self.graph.ops.append(Op(len(self.graph.ops), func, module, call, args, kwargs, outputs))

    def _output(self, t: Tensor, read: dict[int, Value]) -> Value:
        if id(t) in self._values:
            return self._values[id(t)]
        fresh = self._new(t, "activation")
        base = read.get(fresh.storage)
        if base is None or base.kind == "activation":
            return fresh
        view = Value(fresh.index, fresh.shape, fresh.dtype, fresh.storage, fresh.storage_bytes, base.kind, base.name)
        self._values[id(t)] = self.graph.values[fresh.index] = view
        return view


# Activation functions and normalisation have an output like their input; PyTorch takes up to milliseconds to find out.
_LIKE_INPUT = {
    getattr(torch.ops.aten, name).default
    for name in ("relu", "gelu", "silu", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "sigmoid", "tanh")
}


class _Shape:
    """What is left of a meta tensor when its identity is taken away."""

    def __init__(self, t: Tensor) -> None:
        self.size, self.stride, self.dtype = t.size(), t.stride(), t.dtype

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _key(tree: Any) -> Any:
    """Arguments as a dictionary key: tensors by shape, numbers together with their type."""
    if isinstance(tree, Tensor):
        return tree.size(), tree.stride(), tree.dtype
    if isinstance(tree, tuple | list):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((name, _key(item)) for name, item in tree.items())
    return type(tree), tree


def _to_meta(t: Tensor) -> Tensor:
    if t.is_meta:
        return t.detach()
    return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")
