"""Tensors and files in forms that know of zeros, back and forth: what `cdlib.serialization.encoding` is made of."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdlib.errors import CdlibError

PARTS = (".values", ".columns", ".rows", ".bits")
"""What the names of the parts of a tensor end with."""


def check_types(tensors: Iterable[Tensor]) -> None:
    """Raise if the safetensors format does not keep the type of a tensor.

    Raises
    ------
    CdlibError
        For types such as complex128.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    for kind in {tensor.dtype for tensor in tensors}:
        try:
            load(save({"": torch.empty(0, dtype=kind, device="cpu")}))
        except (KeyError, SafetensorError) as error:
            name = str(kind).removeprefix("torch.")
            raise CdlibError(f"safetensors files hold no tensors of {name}: convert them to another type.") from error


def csr_parts(matrix: Tensor) -> dict[str, Tensor]:
    """The parts of a matrix as compressed sparse rows."""
    at = matrix != 0
    rows = torch.cat([at.new_zeros(1, dtype=torch.int64), at.sum(1).cumsum(0)])
    return {".values": matrix[at], ".columns": at.nonzero()[:, 1].int(), ".rows": rows.int()}


def parts_of(tensor: Tensor, form: str) -> dict[str, Tensor] | None:
    """The parts of a tensor in a sparse form; None if it stays dense."""
    parts = None
    if form == "csr" and tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel():
        parts = csr_parts(tensor.flatten(1))
    elif form == "bitmask" and tensor.is_floating_point():
        bits = np.packbits(tensor.flatten().ne(0).numpy())
        parts = {".values": tensor[tensor != 0], ".bits": torch.from_numpy(bits)}
    return parts if parts and sum(part.nbytes for part in parts.values()) < tensor.nbytes else None


def whole(name: str, shape: list[int], stored: dict[str, Tensor]) -> Tensor:
    """A tensor from its parts."""
    values = stored[f"{name}.values"]
    full = values.new_zeros(shape)
    if f"{name}.bits" in stored:
        at = np.unpackbits(stored[f"{name}.bits"].numpy(), count=full.numel()).astype(bool)
        full.view(-1)[torch.from_numpy(at)] = values
    else:
        columns, rows = stored[f"{name}.columns"].long(), stored[f"{name}.rows"].long()
        full.flatten(1)[torch.arange(len(rows) - 1).repeat_interleave(rows.diff()), columns] = values
    return full


def decompressed(content: bytes) -> bytes:
    """What gzip or zstd made bytes of; other bytes as they are. Raises several errors if they are damaged."""
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    if content[:4] != b"\x28\xb5\x2f\xfd":
        return content
    library = zstd()
    try:
        return library.ZstdDecompressor().decompress(content)
    except library.ZstdError as error:
        raise ValueError(str(error)) from error


def zstd() -> Any:
    """The package zstandard; raises a CdlibError if it is not installed."""
    try:
        import zstandard
    except ImportError:
        raise CdlibError("zstd needs the package zstandard: pip install zstandard, or use 'gzip'.") from None
    return zstandard
