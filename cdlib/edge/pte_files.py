"""Networks as programs of ExecuTorch (.pte) for XNNPACK's kernels: float32, or integers of 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.errors import CdlibError
from cdlib.quantization import Quantized, QuantizedLayer, QuantizedSum, Quantizer
from cdlib.text import one_line
from cdlib.torch_state import copied


def write(model: nn.Module, images: Tensor, file: Path, batch: int) -> None:
    """Write a network as a program for so many images at a time; errors of PyTorch and ExecuTorch pass."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    network = stored(model, _Stored, _Rounded) if isinstance(model, Quantized) else copied(model).eval()
    network.to(memory_format=torch.contiguous_format)  # ExecuTorch takes no other
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.AdaptiveMaxPool2d) and module.output_size in (1, (1, 1)) and not module.return_indices:
            network.set_submodule(name, _Largest())
    traced = torch.export.export(network, (images[torch.arange(batch) % len(images)].contiguous(),), strict=False)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()]).to_executorch()
    file.write_bytes(lowered.buffer)


def outputs(file: Path, images: Tensor, batch: int) -> np.ndarray:
    """Return what ExecuTorch computes for images [n, ...], with as many threads as PyTorch."""
    run, many = loaded(file, torch.get_num_threads()), len(images)
    places = torch.arange(-(-many // batch) * batch) % many  # the last batch is filled up with the first images
    return torch.cat([run(images[part].contiguous()) for part in places.split(batch)])[:many].numpy()


def loaded(file: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """Return a program as a function of a batch of images; the number of threads is one for all programs."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that these functions may change
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
    except ImportError as error:
        raise CdlibError("executorch is not installed: pip install executorch.") from error
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    try:
        method = Runtime.get().load_program(file).load_method("forward")
    except Exception as error:
        raise CdlibError(f"{file} is not a network that ExecuTorch can run: {one_line(error)}.") from error

    def run(images: Tensor) -> Tensor:
        try:
            return method.execute([images])[0]
        except RuntimeError as error:
            shape = list(method.metadata.input_tensor_meta(0).sizes())
            raise CdlibError(f"{file} is for {shape}; ExecuTorch cannot run it on {list(images.shape)}.") from error

    return run


def stored(model: Quantized, layer: Callable[..., nn.Module], rounded: Callable[..., nn.Module]) -> nn.Module:
    """Return a copy of the network with what `layer` and `rounded` make of quantized layers and quantizers."""
    network = copied(model)
    for name, quantized in network.layers().items():
        network.net.set_submodule(name, layer(quantized))
    for name, quantizer in network.activations().items():
        network.net.set_submodule(name, rounded(quantizer))
    for module in [module for module in network.modules() if isinstance(module, QuantizedSum)]:
        module.neighbours = ()  # a plain sum
    return network.net.eval()


class _Largest(nn.Module):
    """The largest of a whole image, by pooling for which there are kernels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, x.shape[-2:])


class _Rounded(nn.Module):
    """A quantizer as two operators. XNNPACK's integers are signed: each is less by 128, and so is the zero point."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.given = float(quantizer.scale), int(quantizer.zero_point) - 128, -128, 127, torch.int8

    def forward(self, x: Tensor) -> Tensor:
        operators = torch.ops.quantized_decomposed
        return operators.dequantize_per_tensor(operators.quantize_per_tensor(x, *self.given), *self.given)


class _Stored(nn.Module):
    """A layer whose weights lie in the program as integers; its bias XNNPACK rounds again, to the same ones.

    What it reads is rounded again too, which changes and costs nothing: without that, ExecuTorch finds no kernel behind
    pooling, and computes something else behind a reshape.
    """

    def __init__(self, quantized: QuantizedLayer) -> None:
        super().__init__()
        whole, self.layer = quantized.integers(), quantized.layer
        self.register_buffer("whole", whole["weight"].to(torch.int8))
        self.register_buffer("scale", quantized.weights.scale.expand(len(whole["weight"])).clone())
        self.register_buffer("zero", torch.zeros(len(whole["weight"]), dtype=torch.int64))
        if "bias" in whole:
            self.layer.bias = nn.Parameter((whole["bias"] * quantized.product_scale()).float())
        self.again = _Rounded(quantized.neighbours[0])

    def forward(self, x: Tensor) -> Tensor:
        given = (self.whole, self.scale, self.zero, 0, -127, 127, torch.int8)
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(*given)
        return torch.func.functional_call(self.layer, {"weight": weight}, (self.again(x),))
