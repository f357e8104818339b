"""Networks that share weights in files: codebooks, and Huffman streams of where which value stands.

Of a layer with zeros only the others are kept: how many zeros come before each, at most 254 (255 stands for 255 zeros
and no value), and the index of its value (Deep Compression, Han et al. 2016, arXiv:1510.00149, sections 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.quantization import attach, codebooks
from cdlib.serialization import huffman
from cdlib.torch_state import tensors_of

_PARTS = ("values", "index", "index_code", "gaps", "gaps_code")


def written(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network that shares weights as they are kept in a file."""
    found = {
        name: t.detach().cpu().contiguous()
        for name, t in tensors_of(model).items()
        if ".parametrizations." not in f".{name}"
    }
    for name, (values, index) in codebooks(model).items():
        flat = index.cpu().numpy().ravel()
        parts = {"values": values.cpu().contiguous()}
        if (flat == 0).any():
            parts |= _streams("gaps", _gaps(flat))
        parts |= _streams("index", flat[flat != 0])
        found |= {f"{name}.weight.{part}": tensor for part, tensor in parts.items()}
    return found


def read(network: nn.Module, numbers: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> None:
    """Give a network the shared weights of a file, in place.

    Parameters
    ----------
    network : nn.Module
        Of the same shapes, with weights of its own.
    numbers : mapping of str to list of int
        By layer, how many indices and how many gaps its streams hold.
    tensors : mapping of str to Tensor
        All tensors of the file.

    Raises
    ------
    CdlibError
        If a stream is cut short.
    """
    for name, (many, gaps) in numbers.items():
        layer = network.get_submodule(name)
        shape = layer.get_parameter("weight").shape
        part = {key: tensors[f"{name}.weight.{key}"].numpy() for key in _PARTS if f"{name}.weight.{key}" in tensors}
        values = huffman.decoded(part["index"], part["index_code"], many)
        flat = values
        if "gaps" in part:
            flat = _filled(huffman.decoded(part["gaps"], part["gaps_code"], gaps), values, math.prod(shape), name)
        if len(flat) != math.prod(shape):
            raise CdlibError(f"{name} has {math.prod(shape)} weights and not {len(flat)}: the file is damaged.")
        attach(layer, tensors[f"{name}.weight.values"], torch.from_numpy(flat).view(shape))


def numbers_of(model: nn.Module) -> dict[str, list[int]]:
    """Return what `read` must know of each layer's streams."""
    flat = {name: index.cpu().numpy().ravel() for name, (_, index) in codebooks(model).items()}
    return {name: [int((f != 0).sum()), len(_gaps(f)) if (f == 0).any() else 0] for name, f in flat.items()}


def _streams(name: str, symbols: np.ndarray) -> dict[str, Tensor]:
    stream, lengths = huffman.coded(symbols)
    return {name: torch.from_numpy(stream), f"{name}_code": torch.from_numpy(lengths)}


def _gaps(flat: np.ndarray) -> np.ndarray:
    """The zeros before each value, 255 of them as a 255 of their own."""
    before = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    many = before // 255
    out = np.full(len(before) + int(many.sum()), 255, dtype=np.uint8)
    out[np.arange(len(before)) + np.cumsum(many)] = before % 255
    return out


def _filled(gaps: np.ndarray, values: np.ndarray, size: int, name: str) -> np.ndarray:
    """What `_gaps` and the values were made of."""
    steps = np.where(gaps == 255, 255, gaps.astype(np.int64) + 1)
    places = (np.cumsum(steps) - 1)[gaps != 255]
    if len(places) != len(values) or (len(places) and places[-1] >= size):
        raise CdlibError(f"the values of {name} have no places: the file is damaged.")
    flat = np.zeros(size, dtype=np.uint8)
    flat[places] = values
    return flat
