"""What zeros are worth on the disk: a network stored in forms that know of zeros.

`encode` stores a network without loss, `sizes` sets the bytes of all forms side by side. Running from a sparse form is
left to `cdlib.serialization.sparse_execution`, files that networks are loaded from to
`cdlib.serialization.network_files`.
"""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_choice
from cdlib.pruning import permanent
from cdlib.serialization.archive import content_of, digest_of
from cdlib.serialization.state import check, packed
from cdlib.text import one_line
from cdlib.torch_state import tied

_PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda plain: gzip.compress(plain, 6, mtime=0),
    "zstd": lambda plain: _zstd().ZstdCompressor(9).compress(plain),
}
FORMS = ("dense", *_PACKED, "csr", "bitmask")
_PARTS = (".values", ".columns", ".rows", ".bits")  # what the names of the parts of a tensor end with


def encode(model: nn.Module, form: str = "dense") -> bytes:
    """Return the bytes that store the state of a network.

    A tensor with several names is stored once. Negative zeros, which masks leave behind, become positive ones.

    Parameters
    ----------
    model : nn.Module
        Any network of ordinary tensors; masks are applied first, as `permanent` does. It is left as it was.
    form : str, default "dense"
        "dense": a safetensors file. "gzip", "zstd": that file compressed, at levels 6 and 9, which take about equally
        long. "csr": each floating tensor of two or more dimensions, as a matrix [out, all else], in compressed sparse
        rows: its non-zero values, their columns and where each row begins (int32). "bitmask": each floating tensor as
        a bit a number and the non-zero values. In the last two, a tensor that would not be smaller stays dense.

    Raises
    ------
    CdlibError
        If the form is unknown, the network holds something else than ordinary tensors of types that safetensors has,
        or zstandard is not installed.
    """
    check_choice("form", form, FORMS)
    return _PACKED[form](_file(model, "dense")) if form in _PACKED else _file(model, form)


def decode(content: bytes | bytearray | memoryview) -> dict[str, Tensor]:
    """Return the state dict that `encode` stored, whatever its form, from bytes or anything that holds bytes.

    A CdlibError if it holds no bytes, or they were cut short, altered, or not made by `encode`.
    """
    from safetensors.torch import load

    try:
        content = content if isinstance(content, bytes) else memoryview(content).tobytes()
    except TypeError as error:
        raise CdlibError(f"content is {type(content).__name__!r}, not bytes: give what encode made.") from error
    try:
        plain = _unpacked(content)
        header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
        how, stored = json.loads(header["__metadata__"]["cdlib"]), load(plain)
        intact = how.pop("digest") == digest_of(how, stored)
    except Exception as error:  # bytes from anywhere can raise anything
        raise CdlibError(f"cannot read {len(content)} bytes ({one_line(error)}): give what encode made.") from error
    if not intact:
        raise CdlibError("the bytes were altered after encode made them (another digest): get them again.")
    parts = {name + part for name in how["shapes"] for part in _PARTS}
    state = {name: tensor for name, tensor in stored.items() if name not in parts}
    state |= {name: _whole(name, shape, stored) for name, shape in how["shapes"].items()}
    return state | {name: state[other] for name, other in how["shared"].items()}


def sizes(model: nn.Module) -> pd.DataFrame:
    """Return the bytes of a network in each form: index `form`, columns `bytes` and `relative` (to "dense").

    Errors are those of `encode`.
    """
    files = {form: _file(model, form) for form in FORMS if form not in _PACKED}
    packed = {form: pack(files["dense"]) for form, pack in _PACKED.items()}
    found = pd.Series({form: len({**files, **packed}[form]) for form in FORMS}).rename_axis("form")
    return pd.DataFrame({"bytes": found, "relative": found / found["dense"]})


def _file(model: nn.Module, form: str) -> bytes:
    """A safetensors file of the state of a network, its tensors in one form."""
    check(model)
    model = permanent(model)
    state = packed(model.state_dict())
    ties = {name: other for name, other in tied(model).items() if {name, other} <= state.keys()}
    shapes, stored = dict[str, list[int]](), dict[str, Tensor]()
    for name in (name for name in state if name not in ties):
        tensor = state[name]
        tensor = torch.where(tensor == 0, torch.zeros_like(tensor), tensor)
        if parts := _parts_of(tensor, form):
            shapes[name] = list(tensor.shape)
        stored |= {name + part: values for part, values in (parts or {"": tensor}).items()}
    return content_of({"shapes": shapes, "shared": ties}, stored)


def _unpacked(content: bytes) -> bytes:
    """What gzip or zstd made bytes of; other bytes as they are."""
    if content[:2] == b"\x1f\x8b":
        return gzip.decompress(content)
    return _zstd().ZstdDecompressor().decompress(content) if content[:4] == b"\x28\xb5\x2f\xfd" else content


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise CdlibError("zstd needs the package zstandard: pip install zstandard, or use 'gzip'.") from None
    return zstandard


def csr_parts(matrix: Tensor) -> dict[str, Tensor]:
    """The parts of a matrix as compressed sparse rows: non-zero values, their columns, where each row begins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse tensors a beta, once
        rows = matrix.to_sparse_csr()
    return {".values": rows.values(), ".columns": rows.col_indices().int(), ".rows": rows.crow_indices().int()}


def _parts_of(tensor: Tensor, form: str) -> dict[str, Tensor] | None:
    """The parts of a tensor in a sparse form; None if it stays dense."""
    parts = None
    if form == "csr" and tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel():
        parts = csr_parts(tensor.flatten(1))
    elif form == "bitmask" and tensor.is_floating_point():
        bits = np.packbits(tensor.flatten().ne(0).numpy())
        parts = {".values": tensor[tensor != 0], ".bits": torch.from_numpy(bits)}
    return parts if parts and sum(part.nbytes for part in parts.values()) < tensor.nbytes else None


def _whole(name: str, shape: list[int], stored: dict[str, Tensor]) -> Tensor:
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
