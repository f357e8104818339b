"""Quantized networks in files: integers of few bits, packed without gaps.

A layer's weights are kept as the integers they are rounded to, and its bias as 32-bit integers; so a network that was
read computes what the written one did, bit for bit, though its float weights are those that were rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.quantization import Quantized, equalise, prepared
from cdlib.torch_state import packed_bytes, tensors_of


def pack(whole: Tensor, bits: int) -> Tensor:
    """Return integers from -2^(bits - 1) to 2^(bits - 1) - 1 as a stream of so many bits each, uint8 [bytes].

    Two's complement, the highest bit first; the last byte is filled up with zeros.
    """
    low = whole.detach().cpu().numpy().astype(np.int64).ravel() & (2**bits - 1)
    planes = (low[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return torch.from_numpy(np.packbits(planes.astype(np.uint8)))


def unpack(stream: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Return the int8 integers [shape] that `pack` made a stream of; a CdlibError if its length is another."""
    count = int(np.prod(shape))
    if stream.numel() != packed_bytes(count, bits):
        raise CdlibError(f"{stream.numel()} bytes are not {count} integers of {bits} bits: the file is damaged.")
    planes = np.unpackbits(stream.numpy(), count=count * bits).reshape(count, bits)
    low = planes.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    signed = low - (low >> (bits - 1) << bits)
    return torch.from_numpy(signed.astype(np.int8)).view(shape)


def written(model: Quantized) -> dict[str, Tensor]:
    """Return the tensors of a quantized network as they are kept in a file.

    A CdlibError if a quantizer has no range yet.
    """
    layers = model.layers()
    found = {name: tensor.detach() for name, tensor in tensors_of(model.net).items()}
    for name, layer in layers.items():
        if not all(near.active for near in (layer.weights, *layer.neighbours)):
            raise CdlibError(f"{name} has no ranges yet: quantize the network with cdlib.quantization.static or train.")
        whole = layer.integers()
        found[f"{name}.layer.weight"] = pack(whole["weight"], layer.weights.bits)
        if "bias" in whole:
            found[f"{name}.layer.bias"] = whole["bias"].to(torch.int32)
        if not layer.weights.zero_point.any():
            del found[f"{name}.weights.zero_point"]
    return {name: tensor.cpu().contiguous() for name, tensor in found.items()}


def read(network: nn.Module, plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Quantized:
    """Return a network, of any weights, quantized as a file says.

    Raises KeyError, TypeError, ValueError or RuntimeError if the tensors do not fit the network.
    """
    bits = {str(name): int(width) for name, width in plan["bits"].items()}
    change = equalise if plan.get("equalised") else None  # which makes other layers, besides other weights
    model = prepared(network, bits, per_channel=bool(plan["per_channel"]), norms=plan["norms"], change=change)
    model.plan["equalised"] = change is not None
    for name, layer in model.layers().items():
        if f"{name}.layer.bias" in tensors:
            layer.bias()  # made where it has none
    held = tensors_of(model.net)
    kept = {name: tensors[name] for name in held if not name.endswith(".weights.zero_point") or name in tensors}
    if extra := tensors.keys() - kept.keys():
        raise KeyError(f"{sorted(extra)[0]} is unknown")
    for name, module in model.net.named_modules():
        if hasattr(module, "set_range"):
            scale = kept.pop(f"{name}.scale")
            zero = kept.pop(f"{name}.zero_point", torch.zeros_like(scale, dtype=torch.int32))
            module.scale, module.zero_point, module.active = scale, zero, True
    for name, layer in model.layers().items():
        weight, bias = layer.weight(), kept.pop(f"{name}.layer.bias", None)
        whole = unpack(kept.pop(f"{name}.layer.weight"), layer.weights.bits, tuple(weight.shape))
        scale = layer.weights.scale
        shape = [-1, *[1] * (weight.dim() - 1)] if scale.dim() else []
        weight.data = whole.float() * scale.view(shape)
        if bias is not None:
            layer.bias().data = (bias.double() * layer.product_scale()).float()
    for name, tensor in kept.items():
        if held[name].shape != tensor.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, not {list(held[name].shape)}")
        held[name].data = tensor
    return model
