"""Networks as files that are kept only if a runtime computes the same; ONNX ones, of float32 or of integers (QDQ)."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from cdlib import files
from cdlib.edge import pte_files
from cdlib.errors import CdlibError, check_share, check_whole
from cdlib.models import CARD, Card
from cdlib.quantization import Quantized, QuantizedLayer, Quantizer
from cdlib.report import instructions
from cdlib.text import one_line
from cdlib.torch_state import check_module
from cdlib.train import evaluating

OPSET, THREADS = 21, 1024  # threads are the most that a runtime is asked for
TOLERANCE = 1e-3
"""How far the outputs of a float32 file may be from the network's, as a share of the largest."""


def export(
    model: nn.Module,
    images: Tensor,
    path: str | Path,
    *,
    card: Card | None = None,
    tolerance: float = TOLERANCE,
    batch: int = 1,
) -> float:
    """Write a network as an ONNX file, or for ExecuTorch, and keep it only if the runtime computes the same.

    A quantized network becomes one of integers: weights and biases lie in the file as such, and what passes between
    layers goes through quantizing and dequantizing operators, which runtimes replace by integer kernels.

    Parameters
    ----------
    model : nn.Module
        Float32, or quantized by `cdlib.quantization`; it returns one tensor, and `torch.export` can trace it.
    images : Tensor [n, ...]
        At least two, of finite floats, on which both are compared.
    path : str or Path
        Of the file; one that is there is replaced. A name that ends in ``.pte`` makes a program of ExecuTorch for
        XNNPACK's kernels (``pip install executorch``); any other an ONNX file, which takes batches of any size.
    card : cdlib.models.Card, optional
        What the network takes and says. It goes into an ONNX file's metadata, where `cdlib.edge.Deployed` reads it.
    tolerance : float, default 1e-3
        For a float network, from 0 to below 1, of the largest difference divided by the largest output. A quantized one
        must give for 99.9 % of the images a class whose output is within two steps of the largest, or, if it gives one
        number, this number within two steps. If its outputs are computed in float32, they may still follow inner ones
        that round to a neighbour, and a step is 1/255 of their range with zero, as 8 bits would have it.
    batch : int, default 1
        How many images a ``.pte`` takes at a time: so many, neither fewer nor more.

    Returns
    -------
    float
        The largest difference of outputs; for a quantized network in steps.

    Raises
    ------
    CdlibError
        If onnx, onnxscript and onnxruntime, or executorch, are not installed, the network cannot be exported or does
        not fit its card, a ``.pte`` is to hold a card, an input or output is not finite, or the file computes something
        else: on a CPU without VNNI, sums of 8-bit weights may saturate in onnxruntime, and 7 bits are the cure. Then
        nothing is written.
    """
    target, to_pte = Path(path).expanduser(), Path(path).suffix.lower() == ".pte"
    needed = ("executorch",) if to_pte else ("onnx", "onnxscript", "onnxruntime")
    try:
        for package in needed:
            importlib.import_module(package)
    except ImportError as error:
        raise CdlibError(f"{error.name} is not installed: pip install {' '.join(needed)}.") from error
    check_whole("batch", batch, 1)
    check_share("tolerance", tolerance)
    if not isinstance(images, Tensor) or images.dim() < 2 or len(images) < 2:
        raise CdlibError("give at least two images, [n, channels, ...], to compare the file and the network on.")
    if not images.is_floating_point() or not images.isfinite().all():
        raise CdlibError(f"the images are {images.dtype} or not all finite: give floats as the network takes them.")
    if target.is_dir() or not target.parent.is_dir():
        what = f"{target} is a folder" if target.is_dir() else f"there is no folder {target.parent}"
        raise CdlibError(f"{what}: give the path of a file in a folder that exists.")
    if to_pte and card is not None:
        raise CdlibError(f"{target.name} has no room for a card, as a .pte: leave the card out, or write an .onnx.")
    check_module(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"network{target.suffix}"
        with _one_line(model, "ExecuTorch" if to_pte else "ONNX"):
            pte_files.write(model, images, file, batch) if to_pte else _write(model, images[:2], file, card)
        wanted = _wanted(model, images)
        found = pte_files.outputs(file, images, batch) if to_pte else _outputs(file, images)
        if card is not None and ([*images.shape[1:]], wanted.shape[1:]) != (card.shape, (len(card.classes),)):
            raise CdlibError(
                f"the card says {card.shape} and {len(card.classes)} classes, but the network takes "
                f"{[*images.shape[1:]]} and gives {[*wanted.shape[1:]]} numbers."
            )
        difference = _compared(model, found, wanted, tolerance, needed[-1])
        with files.atomic(target) as out:
            out.write(file.read_bytes())
    return difference


def _wanted(model: nn.Module, images: Tensor) -> np.ndarray:
    """Return what a network computes; a CdlibError if that cannot be compared."""
    with evaluating(model):
        parts = [model(part) for part in images.split(100)]
    if not isinstance(parts[0], Tensor) or not parts[0].is_floating_point():
        raise CdlibError(f"{type(model).__name__} returns {type(parts[0]).__name__}: export takes one float tensor.")
    wanted = torch.cat(parts).numpy()
    if not np.isfinite(wanted).all():
        raise CdlibError(f"{type(model).__name__} gives NaN or infinity for these images: look at its weights.")
    return wanted


def _compared(model: nn.Module, found: np.ndarray, wanted: np.ndarray, tolerance: float, runtime: str) -> float:
    """Return how far a runtime's outputs are from the network's; a CdlibError if that is too far."""
    differences = np.abs(found - wanted)
    difference = float(differences.max())
    if isinstance(model, Quantized):
        step = _step(model, wanted)
        difference /= step
        if wanted[0].size > 1:
            said = np.take_along_axis(wanted, found.argmax(1, keepdims=True), 1)
            differences = wanted.max(1, keepdims=True) - said
        same = float((differences <= 2 * step).mean())
        if not np.isfinite(difference) or same < 0.999:
            raise CdlibError(
                f"{runtime} agrees with the network on {100 * same:.2f} % of {len(found)} images only{_why(runtime)}."
            )
    elif not difference <= tolerance * np.abs(wanted).max():
        raise CdlibError(f"{runtime}'s outputs differ from the network's by {difference:.3g}: not written.")
    return difference


def _step(model: Quantized, wanted: np.ndarray) -> float:
    """The step of the quantizer that outputs come from; where they are computed in float32, that of 8 bits."""
    modules: dict[Any, Any] = dict(model.net.named_modules())
    node: Any = next(iter(reversed(model.net.graph.nodes)))
    while isinstance(node, fx.Node):
        if isinstance(quantizer := modules.get(node.target), Quantizer):
            steps = wanted / float(quantizer.scale)
            if np.abs(steps - steps.round()).max() < 0.01:  # nothing but moves between it and the outputs
                return float(quantizer.scale)
            break
        node = node.args[0] if node.args else None
    return float(max(wanted.max(), 0) - min(wanted.min(), 0)) / 255 or 1.0


def _why(runtime: str) -> str:
    """What may be the reason for another result, by what the CPU can do."""
    if runtime != "onnxruntime" or {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"} & {*(instructions() or ())}:
        return ""
    return ": this CPU has no VNNI, and sums of products of 8 bits may saturate; quantize with bits=7"


@contextlib.contextmanager
def _one_line(model: nn.Module, form: str) -> Iterator[None]:
    """Trace a network in a block in evaluation mode; keep PyTorch from printing graphs and advice where that fails."""
    before, to = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            evaluating(model),
            contextlib.redirect_stdout(to),
            contextlib.redirect_stderr(to),
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # PyTorch wraps what is wrong in advice of many lines
            cause = cause.__cause__
        raise CdlibError(f"{type(model).__name__} cannot be exported to {form}: {one_line(cause)}.") from error
    finally:
        logging.disable(before)


def _write(model: nn.Module, images: Tensor, file: Path, card: Card | None) -> None:
    free = ({0: torch.export.Dim("n")},)
    net = pte_files.stored(model, _Stored, _Rounded) if isinstance(model, Quantized) else model
    program: Any = torch.onnx.export(
        net, (images,), dynamo=True, opset_version=OPSET, dynamic_shapes=free, verbose=False
    )
    graph = program.model.graph
    inner = [value for node in graph for value in node.outputs]
    for part in (graph, *graph, *graph.inputs, *graph.initializers.values(), *inner):
        part.metadata_props.clear()  # of every operator its source, with the paths of this machine
    for value in (*inner, *graph.initializers.values()):
        if value not in graph.outputs:
            value.shape = value.type = None  # runtimes work them out: a tenth of a small file
    if card is not None:
        program.model.metadata_props[CARD] = card.text()
    program.save(file)


def _outputs(file: Path, images: Tensor) -> np.ndarray:
    running = session(file, torch.get_num_threads())
    name = running.get_inputs()[0].name
    return np.concatenate([running.run(None, {name: part.numpy()})[0] for part in images.split(100)])


def session(file: Path, threads: int, fused: Path | None = None) -> Any:
    """Return a file in onnxruntime on the CPU; what it runs in fact is written to `fused`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CdlibError("onnxruntime is not installed: pip install onnxruntime.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if fused is not None:
        options.optimized_model_filepath = str(fused)
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CdlibError(f"{file} is not a network that onnxruntime can run: {one_line(error)}.") from error


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
        self.layer, whole = quantized.layer, quantized.integers()
        self.names = list(whole)
        scales = {"weight": quantized.weights.scale, "bias": quantized.product_scale().float()}
        for name, numbers in whole.items():
            scale, kind = scales[name], torch.int8 if name == "weight" else torch.int32
            self.register_buffer(f"{name}_whole", numbers.to(kind))
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.zeros_like(scale, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        parts = ("whole", "scale", "zero")
        given = {n: _dequantized(*(self.get_buffer(f"{n}_{part}") for part in parts)) for n in self.names}
        return torch.func.functional_call(self.layer, given, (x,))
