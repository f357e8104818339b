"""Networks as ONNX files: float32, or integers between QuantizeLinear and DequantizeLinear (QDQ)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.models import CARD, Card
from cdlib.quantization import Quantized, QuantizedLayer, QuantizedSum, Quantizer
from cdlib.torch_state import copied

OPSET = 21
FORM, RUNTIME, NEEDS = "ONNX", "onnxruntime", ("onnx", "onnxscript", "onnxruntime")


def write(model: nn.Module, images: Tensor, file: Path, card: Card | None, batch: int) -> None:
    """Write a network as a file that takes any number of images, not `batch` alone; PyTorch's errors pass."""
    shapes = ({0: torch.export.Dim("n")},)
    traced = stored(model, _Stored, _Rounded) if isinstance(model, Quantized) else model
    program: Any = torch.onnx.export(
        traced, (images[:2],), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False
    )
    graph = program.model.graph
    for part in (graph, *graph, *graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
        part.metadata_props.clear()  # of every operator its source, with the paths of this machine
    if card is not None:
        program.model.metadata_props[CARD] = card.text()
    program.save(file)


def outputs(file: Path, images: Tensor, batch: int) -> np.ndarray:
    """Return what onnxruntime computes for images [n, ...], with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part.numpy()})[0] for part in images.split(100)])


def stored(model: Quantized, layer: Callable[..., nn.Module], rounded: Callable[..., nn.Module]) -> nn.Module:
    """Return a copy of the network with what `layer` and `rounded` make of quantized layers and quantizers."""
    network = copied(model)
    for name, quantized in network.layers().items():
        network.net.set_submodule(name, layer(quantized))
    for name, quantizer in network.activations().items():
        network.net.set_submodule(name, rounded(quantizer))
    for module in network.modules():
        if isinstance(module, QuantizedSum):
            module.neighbours = ()  # a plain sum
    return network.net.eval()


def _dequantized(whole: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    attributes: dict[str, Any] = {"axis": 0} if scale.dim() else {}
    given = (whole, scale, zero)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", given, attributes, dtype=torch.float32, shape=whole.shape, version=OPSET
    )


class _Rounded(nn.Module):
    """A quantizer as the two operators of ONNX."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        given = (x, self.scale, self.zero_point)
        whole = torch.onnx.ops.symbolic("QuantizeLinear", given, dtype=torch.uint8, shape=x.shape, version=OPSET)
        return _dequantized(whole, self.scale, self.zero_point)


class _Stored(nn.Module):
    """A layer whose weights and bias lie in the file as integers."""

    def __init__(self, quantized: QuantizedLayer) -> None:
        super().__init__()
        self.layer = quantized.layer
        whole = quantized.integers()
        self._hold("weight", whole["weight"].to(torch.int8), quantized.weights.scale)
        if "bias" in whole:
            self._hold("bias", whole["bias"].to(torch.int32), quantized.product_scale().float())

    def _hold(self, name: str, whole: Tensor, scale: Tensor) -> None:
        self.register_buffer(f"{name}_whole", whole)
        self.register_buffer(f"{name}_scale", scale)
        self.register_buffer(f"{name}_zero", torch.zeros_like(scale, dtype=whole.dtype))

    def forward(self, x: Tensor) -> Tensor:
        held = {name: buffer for name, buffer in self.named_buffers() if "." not in name}
        given = {
            name: _dequantized(held[f"{name}_whole"], held[f"{name}_scale"], held[f"{name}_zero"])
            for name in ("weight", "bias")
            if f"{name}_whole" in held
        }
        out: Tensor = torch.func.functional_call(self.layer, given, (x,))
        return out
