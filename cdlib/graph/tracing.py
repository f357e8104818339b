"""Capture a network as a `cdlib.graph.Graph` by running it once.

`capture` runs the network in evaluation mode and for one sample, and writes down every ATen operator that PyTorch
dispatches. Because operators are recorded and not modules, functional calls, bare parameters, shared modules and
in-place operators are all seen.

The run happens on *meta* tensors, which have shapes but no numbers, so that it costs neither arithmetic nor memory;
only operators fed by weights and constants alone are computed. Run on real tensors instead is a network whose course
depends on numbers (a detector's `nonzero`, say), that uses an operator without a shape rule (packed int8 weights), or
on whose modules the user has put hooks: they are called, and may keep what they see. So is one that is profiled inside
of `torch.autocast`, which passes meta tensors over. Fused attention (`scaled_dot_product_attention`) is kept as one
operator, as the CPU and GPU kernels run it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._C import DisableTorchFunction
from torch.nn import functional as F
from torch.nn.modules.module import (
    _global_forward_hooks,
    _global_forward_pre_hooks,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.prune import BasePruningMethod
from torch.overrides import TorchFunctionMode

from cdlib.errors import CdlibError
from cdlib.graph.inputs import ExampleInput, Inputs
from cdlib.graph.recorder import Recorder
from cdlib.graph.state import kept, snapshot
from cdlib.graph.trees import tensors
from cdlib.graph.types import Graph
from cdlib.text import one_line
from cdlib.torch_state import check_module, check_shapes

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""The devices for which PyTorch has an autocast."""


def capture(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    kwargs: Mapping[str, Any] | None = None,
    batch_dim: int | None = 0,
    autocast: bool = False,
) -> Graph:
    """Run `model` once on one sample of `example_input` and return what ran, as a `Graph`.

    Parameters
    ----------
    model : nn.Module
        Any network. It is run in evaluation mode without gradients and left as it was found.
    example_input, kwargs, batch_dim
        What it is called with, as for `cdlib.profile`. Every tensor that is as long in the dimension `batch_dim` as the
        first one is cut to one sample; with None, the input is taken whole.
    autocast : bool, default False
        Whether a `torch.autocast` around the call applies. By default the network runs in its own precision.

    Raises
    ------
    CdlibError
        If the input is no tensor or tuple, or the network raises when it is run.
    """
    model = getattr(check_module(model), "_orig_mod", model)  # torch.compile wraps the network that we want to see
    check_shapes(model)
    inputs = Inputs.of(example_input, kwargs, batch_dim).repeated(1)
    graph, error = record(model, inputs, autocast=autocast)
    if error is not None:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(inputs))
        cut = f" (one sample, cut along dimension {batch_dim}; batch_dim=None keeps it whole)"
        raise CdlibError(
            f"{type(model).__name__} cannot run on an input of shape {shapes}{'' if batch_dim is None else cut}: "
            f"{one_line(error)}. Check the shape and type of the input, and that the network runs on it."
        ) from error
    return graph


def record(
    model: nn.Module, inputs: Inputs, *, autocast: bool = False, closely: bool = False
) -> tuple[Graph, Exception | None]:
    """Run a network once in evaluation mode, on meta tensors where it can; return what `run` does."""
    held_on_meta = any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    if held_on_meta or not (_has_hooks(model) or (autocast and any(map(torch.is_autocast_enabled, _AUTOCAST)))):
        graph, error = run(model, inputs, on_meta=True, autocast=autocast, closely=closely)
        if error is None or held_on_meta:
            return graph, error
    return run(model, inputs, on_meta=False, autocast=autocast, closely=closely)


def _has_hooks(model: nn.Module) -> bool:
    """Whether a run calls hooks of the user, other than those of PyTorch, such as masks and weight norms."""
    places = [_global_forward_hooks, _global_forward_pre_hooks]
    for module in model.modules():
        places += [module._forward_hooks, module._forward_pre_hooks]
    hooks = [hook for place in places for hook in place.values() if not isinstance(hook, BasePruningMethod)]
    return not all(str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)


def run(
    model: nn.Module,
    inputs: Inputs,
    *,
    on_meta: bool,
    training: bool = False,
    autocast: bool = False,
    closely: bool = False,
) -> tuple[Graph, Exception | None]:
    """Run a network once, and return what ran and what it raised, if it did not come to its end.

    With `training`, every module is in training mode meanwhile. Under `autocast`, every cast of a weight is recorded.
    `closely` also records what code does that is no operator: it turns gradients off, or draws numbers in Python.
    """
    recorder = Recorder(model, on_meta, closely)
    try:
        inputs = recorder.enter_inputs(inputs)
        with _autocast(autocast), in_mode(model, recorder, training), recorder, _gradients(recorder):
            outputs = inputs.call(model)
        recorder.graph.outputs = tuple(recorder.value(t) for t in tensors(outputs))
    except Exception as error:
        return recorder.graph, error
    return recorder.graph, None


def changes(model: nn.Module, inputs: Inputs, *, on_meta: bool) -> set[tuple[str, str]]:
    """Return what a second call in training mode changes for the next one: attributes of modules, by their names."""
    recorder = Recorder(model, on_meta)
    once, again = recorder.enter_inputs(inputs), recorder.enter_inputs(inputs)
    with _autocast(False), in_mode(model, recorder, training=True), recorder:
        once.call(model)
        changed = kept(model)
        again.call(model)
        return changed()


@contextmanager
def _autocast(applies: bool) -> Iterator[None]:
    """Apply the autocast around or none, without its cache, behind which a weight that was cast before is not seen."""
    with ExitStack() as undo:
        undo.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        for device in () if applies else _AUTOCAST:
            if torch.is_autocast_enabled(device):
                undo.enter_context(torch.autocast(device, enabled=False))
        torch.set_autocast_cache_enabled(False)
        yield


@contextmanager
def in_mode(model: nn.Module, recorder: Recorder, training: bool = False) -> Iterator[None]:
    """One mode, no gradients, no rerouting of attention, calls of modules reported; all undone on leaving."""
    attention = _Attention(recorder)
    with ExitStack() as undo:
        undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        undo.callback(snapshot(model))
        devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
        undo.enter_context(torch.random.fork_rng(devices=devices))
        for module in model.modules():
            module.training = training
        undo.enter_context(register_module_forward_pre_hook(recorder.enter_module))
        undo.enter_context(register_module_forward_hook(recorder.leave_module, with_kwargs=True, always_call=True))
        # PyTorch's own functions, multi-head attention among them, run without the mode that sees all other calls.
        undo.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention.called))
        undo.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # parts of the network may be compiled: here they run as they were written
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(attention)
        yield


@contextmanager
def _gradients(recorder: Recorder) -> Iterator[None]:
    """Have code that runs without gradients believe that they are on where it did not turn them off; note where it did.

    A recording keeps no gradients. That they are turned off or on again, PyTorch tells the mode that sees attention.
    """
    original = torch.autograd.Function.__dict__["apply"]

    def apply(kind: type, *args: Any, **kwargs: Any) -> Any:
        outer, recorder.function = recorder.function, recorder.function or kind.__name__
        try:
            return original.__get__(None, kind)(*args, **kwargs)
        finally:
            recorder.function = outer

    with ExitStack() as undo:
        if recorder.closely:
            undo.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
            undo.enter_context(mock.patch.object(torch, "is_grad_enabled", lambda: recorder.gradients))
        yield


class _Attention(TorchFunctionMode):
    """Hands `scaled_dot_product_attention` to a recorder as one operator, by whatever name it is called."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder, self._function = recorder, F.scaled_dot_product_attention

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ATTENTION:
            return self.called(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled and self._recorder.closely:
            self._recorder.gradients = args[0]
            return None
        return func(*args, **(kwargs or {}))

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """What attention gives."""
        with DisableTorchFunction():
            return self._recorder.attention(self._function, *args, **kwargs)


_ATTENTION = {
    F.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
