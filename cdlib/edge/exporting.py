"""Networks as files for a runtime, each kept only if the runtime computes what the network does."""

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
from torch import Tensor, nn

from cdlib import files
from cdlib.edge import onnx_files, pte_files
from cdlib.errors import CdlibError, check_whole
from cdlib.models import Card
from cdlib.quantization import Quantized
from cdlib.report import instructions
from cdlib.text import one_line
from cdlib.torch_state import check_module
from cdlib.train import evaluating

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
        Float32, or quantized by `cdlib.quantization`; `torch.export` must be able to trace it.
    images : Tensor [n, ...]
        At least two, on which both are compared.
    path : str or Path
        Of the file; one that is there is replaced. A name that ends in ``.pte`` makes a program of ExecuTorch for
        XNNPACK's kernels (``pip install executorch``); any other an ONNX file, which takes batches of any size.
    card : cdlib.models.Card, optional
        What the network takes and says. It goes into an ONNX file's metadata, where `cdlib.edge.Deployed` reads it.
    tolerance : float, default 1e-3
        For a float network, of the largest difference divided by the largest output. A quantized one must give the same
        class for 99.9 % of the images, not counting those whose two best classes are within two steps.
    batch : int, default 1
        How many images a ``.pte`` takes at a time: so many, neither fewer nor more.

    Returns
    -------
    float
        The largest difference of outputs; for a quantized network in steps of its last quantizer.

    Raises
    ------
    CdlibError
        If onnx, onnxscript and onnxruntime, or executorch, are not installed, the network cannot be exported or does
        not fit its card, a ``.pte`` is to hold a card, or the file computes something else: on a CPU without VNNI, sums
        of 8-bit weights may saturate in onnxruntime, and 7 bits are the cure. Then nothing is written.
    """
    target = Path(path).expanduser()
    form: Any = pte_files if target.suffix == ".pte" else onnx_files
    try:
        for package in form.NEEDS:
            importlib.import_module(package)
    except ImportError as error:
        raise CdlibError(f"{error.name} is not installed: pip install {' '.join(form.NEEDS)}.") from error
    check_whole("batch", batch, 1)
    if not isinstance(images, Tensor) or images.dim() < 2 or len(images) < 2:
        raise CdlibError("give at least two images, [n, channels, ...], to compare the file and the network on.")
    if not target.parent.is_dir():
        raise CdlibError(f"there is no folder {target.parent}: give the path of a file in a folder that exists.")
    check_module(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"network{target.suffix}"
        with _one_line(model, form.FORM):
            form.write(model, images, file, card, batch)
        found = form.outputs(file, images, batch)
        with evaluating(model):
            wanted = torch.cat([model(part) for part in images.split(100)]).numpy()
        if card is not None and ([*images.shape[1:]], wanted.shape[1:]) != (card.shape, (len(card.classes),)):
            raise CdlibError(
                f"the card says {card.shape} and {len(card.classes)} classes, but the network takes "
                f"{[*images.shape[1:]]} and gives {[*wanted.shape[1:]]} numbers."
            )
        difference = _compared(model, found, wanted, tolerance, form.RUNTIME)
        content = file.read_bytes()
    with files.atomic(target) as out:
        out.write(content)
    return difference


def _compared(model: nn.Module, found: np.ndarray, wanted: np.ndarray, tolerance: float, runtime: str) -> float:
    """Return how far a runtime's outputs are from the network's; a CdlibError if that is too far."""
    difference = float(np.abs(found - wanted).max())
    if isinstance(model, Quantized):
        step = float(list(model.activations().values())[-1].scale)
        difference /= step
        margin = np.diff(np.sort(wanted, 1)[:, -2:], axis=1)[:, 0]
        same = float(((found.argmax(1) == wanted.argmax(1)) | (margin <= 2 * step)).mean())
        if same < 0.999:
            why = _why() if runtime == "onnxruntime" else ""
            raise CdlibError(
                f"{runtime} agrees with the network on {100 * same:.2f} % of {len(found)} images only{why}."
            )
    elif difference > tolerance * np.abs(wanted).max():
        raise CdlibError(f"{runtime}'s outputs differ from the network's by {difference:.3g}: not written.")
    return difference


def _why() -> str:
    """What may be the reason for another result, by what the CPU can do."""
    if {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"} & {*(instructions() or ())}:
        return ""
    return ": this CPU has no VNNI, and sums of products of 8 bits may saturate; quantize with bits=7"


@contextlib.contextmanager
def _one_line(model: nn.Module, form: str) -> Iterator[None]:
    """Trace a network in a block in evaluation mode; keep PyTorch from printing graphs and advice where that fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            evaluating(model),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
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
