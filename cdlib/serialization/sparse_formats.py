"""Tensors in forms that know of zeros, back and forth: compressed sparse rows, and a bit for each number."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

PARTS = (".values", ".columns", ".rows", ".bits")
"""What the names of the parts of a tensor end with."""


def csr_parts(matrix: Tensor) -> dict[str, Tensor]:
    """The parts of a matrix as compressed sparse rows: non-zero values, their columns, where each row begins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse tensors a beta, once
        rows = matrix.to_sparse_csr()
    return {".values": rows.values(), ".columns": rows.col_indices().int(), ".rows": rows.crow_indices().int()}


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
    else:  # by hand, since Tensor.to_dense has no float8
        columns, rows = stored[f"{name}.columns"].long(), stored[f"{name}.rows"].long()
        full.flatten(1)[torch.arange(len(rows) - 1).repeat_interleave(rows.diff()), columns] = values
    return full
