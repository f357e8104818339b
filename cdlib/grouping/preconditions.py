"""What networks and inputs cannot be pruned, said before any work starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import Graph, Inputs, run, tensors
from cdlib.torch_state import check_module, check_shapes, sharing, tensors_of


def check(model: Any, example_input: Any) -> None:
    """Raise a CdlibError if a network is not one that can be cut, or is on another device than its input.

    So is what is no network, a compiled, scripted, exported, quantized or uninitialised one, one whose parameters share
    memory without being the same, and any inside torch.inference_mode.
    """
    name = type(check_module(model)).__name__
    if torch.is_inference_mode_enabled():
        raise CdlibError(f"{name} cannot be captured inside torch.inference_mode(): leave it, or use torch.no_grad().")
    if hasattr(model, "_orig_mod") or any(m._compiled_call_impl is not None for m in model.modules()):
        raise CdlibError(
            f"{name} is compiled: pass the network as it was before torch.compile, and compile the result."
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise CdlibError(f"{name} is compiled by torch.jit: pass the Python network that it was made from.")
    for path, module in model.named_modules():
        kind = type(module)
        if ".quantized." in kind.__module__ or "quantization" in kind.__module__.split("."):
            raise CdlibError(f"{path or name} is quantized ({kind.__name__}): prune the float network, then quantize.")
    check_shapes(model)
    held = tensors_of(model)
    for path, tensor in held.items():
        if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and isinstance(tensor, nn.Parameter)):
            raise CdlibError(f"{path} is quantized ({tensor.dtype}): prune the float network, then quantize.")
    if pair := sharing(held, lambda tensor: tensor.untyped_storage().data_ptr()):
        raise CdlibError(
            f"{pair[0]} and {pair[1]} share memory without being the same parameter: "
            f"make one of them a copy ({pair[0]}.data = {pair[0]}.data.clone()) or the same object."
        )
    devices = {tensor.device.type for tensor in held.values()}
    for tensor in tensors(example_input):
        if devices and tensor.device.type not in devices:
            raise CdlibError(
                f"example_input is on {tensor.device} and {name} on {', '.join(sorted(devices))}: "
                "move one of them with .to(device)."
            )


def check_course(graph: Graph) -> None:
    """Raise a CdlibError if a network chose by a number that it computed from its input which weights to use.

    One run does not show what it does for other inputs. Choices after the last weight, such as those of a detector
    about its boxes, do no harm.
    """
    last = max((op.index for op in graph.ops if any(v.kind == "parameter" for v in op.inputs)), default=0)
    for op in graph.ops[:last]:
        chosen = [value for value in op.inputs if value.kind == "activation" and value.dtype == torch.bool]
        if op.name in _CHOICES and (chosen or op.name == "equal"):
            where = f"in {op.module}" if op.module else "in its own forward"
            raise CdlibError(
                f"the network chooses its course by a number that it computes ({op.name} {where}), and one run does "
                "not show what it does otherwise: take the choice out, or pass the part of the network without it."
            )


_CHOICES = {"_local_scalar_dense", "is_nonzero", "equal"}
"""Operators that hand a number of a tensor to Python; a truth value, for an ``if``."""


def training_run(model: nn.Module, graph: Graph, inputs: Inputs) -> Graph | None:
    """Record a network in training mode, if there are weights that it uses then and not at inference; else None."""
    unused = {name for name, _ in model.named_parameters()} - _weights(graph)
    if not unused or graph.follows_numbers:
        return None
    training, error = run(model, inputs.repeated(2), on_meta=graph.on_meta, training=True)
    return training if error is None and unused & _weights(training) else None


def check_batch(model: nn.Module, graph: Graph, args: Inputs) -> None:
    """Raise a CdlibError if a network uses other weights for several samples (`args`) than for one (`graph`).

    A network whose shapes depend on numbers is not checked.
    """
    if graph.follows_numbers:
        return
    other, error = run(model, args, on_meta=graph.on_meta)
    if error is None and _weights(graph) != _weights(other):
        raise CdlibError(
            f"{type(model).__name__} uses other weights for several samples than for one: what was found out with one "
            "sample does not hold. Take the choice out of its forward."
        )


def _weights(graph: Graph) -> set[str]:
    return {value.name for op in graph.ops for value in op.inputs if value.kind == "parameter"}
