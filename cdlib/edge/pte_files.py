"""Networks as programs of ExecuTorch (.pte) that run on XNNPACK's kernels: float32, or integers of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.errors import CdlibError
from cdlib.quantization import Quantized, QuantizedLayer, QuantizedSum, Quantizer
from cdlib.text import one_line
from cdlib.torch_state import copied


def write(model: nn.Module, images: Tensor, file: Path) -> None:
    """Write a network as a program for so many images; what PyTorch and ExecuTorch raise, it raises."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    network = copied(model).to(memory_format=torch.contiguous_format).eval()  # ExecuTorch takes no other
    if isinstance(network, Quantized):
        network = _stored(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveMaxPool2d) and not module.return_indices:
            network.set_submodule(name, _Largest(module.output_size))
    traced = torch.export.export(network, (images.contiguous(),), strict=False)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)


def loaded(file: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Return a program as a function of a batch of images; the number of threads is one for all programs.

    Raises
    ------
    CdlibError
        If executorch is not installed, or the file is no program.
    """
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise CdlibError("executorch is not installed: pip install executorch.") from error
    portable_lib._unsafe_reset_threadpool(threads)
    try:
        method = Runtime.get().load_program(file).load_method("forward")
    except Exception as error:
        raise CdlibError(f"{file} is not a network that ExecuTorch can run: {one_line(error)}.") from error
    return lambda images: method.execute([images])[0]


def outputs(file: Path, images: Tensor, batch: int) -> np.ndarray:
    """Return what ExecuTorch computes for images [n, ...], `batch` at a time, with as many threads as PyTorch."""
    run, many = loaded(file, torch.get_num_threads()), len(images)
    rounds = torch.arange(-(-many // batch) * batch) % many  # the last batch is filled up with the first images
    return torch.cat([run(images[rows].contiguous()) for rows in rounds.split(batch)])[:many].numpy()


class _Largest(nn.Module):
    """Adaptive max pooling as plain one, for which there are kernels; both are the same where sizes divide."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = size if isinstance(size, tuple) else (size, size)

    def forward(self, x: Tensor) -> Tensor:
        made = [given or now for given, now in zip(self.size, x.shape[-2:], strict=True)]
        if any(now % given for given, now in zip(made, x.shape[-2:], strict=True)):
            return F.adaptive_max_pool2d(x, made)
        return F.max_pool2d(x, [now // given for given, now in zip(made, x.shape[-2:], strict=True)])


def _stored(network: Quantized) -> nn.Module:
    """Return the network, changed in place, with operators of torch.export in place of quantizers."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - which registers them

    layers, activations = network.layers(), network.activations()
    for name, layer in layers.items():
        network.net.set_submodule(name, _Stored(layer))
    for name, quantizer in activations.items():
        network.net.set_submodule(name, _Rounded(quantizer))
    for module in network.modules():
        if isinstance(module, QuantizedSum):
            module.neighbours = ()  # a plain sum
    return network.net


class _Rounded(nn.Module):
    """A quantizer as two operators. XNNPACK's integers are signed: each is less by 128, and so is the zero point."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.given = float(quantizer.scale), int(quantizer.zero_point) - 128, -128, 127, torch.int8

    def forward(self, x: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        out: Tensor = operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *self.given), *self.given)
        return out


class _Stored(nn.Module):
    """A layer whose weights lie in the program as integers; its bias XNNPACK rounds again, to the same ones."""

    def __init__(self, quantized: QuantizedLayer) -> None:
        super().__init__()
        whole, scale = quantized.integers(), quantized.weights.scale
        self.layer = quantized.layer
        self.register_buffer("whole", whole["weight"].to(torch.int8))
        self.register_buffer("scale", scale.expand(len(whole["weight"])).clone())
        self.register_buffer("zero", torch.zeros(len(whole["weight"]), dtype=torch.int64))
        if "bias" in whole:
            self.layer.bias = nn.Parameter((whole["bias"] * quantized.product_scale()).float())

    def forward(self, x: Tensor) -> Tensor:
        given = (self.whole, self.scale, self.zero, 0, -127, 127, torch.int8)
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(*given)
        out: Tensor = torch.func.functional_call(self.layer, {"weight": weight}, (x,))
        return out
