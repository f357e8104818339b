"""What zeros are worth on the disk and on the clock: a network stored, and run, in forms that know of zeros.

`encode` stores a network without loss, `sizes` sets the bytes of all forms side by side. `executable` is a copy that
runs from a sparse form, `two_to_four` makes the pattern of zeros that GPUs have kernels for. Other masks are left to
`cdlib.pruning.unstructured_pruning`, files that networks are loaded from to `cdlib.serialization.network_files`.
"""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_choice
from cdlib.graph.tracing import ExampleInput, capture
from cdlib.grouping import check
from cdlib.pruning.unstructured_pruning import permanent
from cdlib.pruning.weight_masks import layers_of, magnitudes, put_on
from cdlib.serialization import sparse_formats as forms
from cdlib.serialization import state as contents
from cdlib.serialization.archive import digest, line
from cdlib.surgery.removal import copied

FORMS = ("dense", "gzip", "zstd", "csr", "bitmask")


def encode(model: nn.Module, form: str = "dense") -> bytes:
    """Return the bytes that store the state of a network.

    Parameters
    ----------
    model : nn.Module
        Any network of ordinary tensors; masks are applied first, as `permanent` does. It is left as it was.
    form : str, default "dense"
        "dense": a safetensors file. "gzip", "zstd": that file compressed, at levels 6 and 9, which take about equally
        long. "csr": each floating tensor of two or more dimensions, as a matrix [out, all else], in compressed sparse
        rows: its non-zero values, their columns and where each row begins (int32). "bitmask": each floating tensor as
        a bit a number and the non-zero values. In the last two, a tensor that would not be smaller stays dense.

    Returns
    -------
    bytes
        A tensor with several names is stored once. Negative zeros, which masks leave behind, become positive ones.

    Raises
    ------
    CdlibError
        If the form is unknown, the network holds something else than ordinary tensors of types that safetensors has,
        or zstandard is not installed.
    """
    check_choice("form", form, FORMS)
    if form in ("gzip", "zstd"):
        plain = encode(model)
        return gzip.compress(plain, 6, mtime=0) if form == "gzip" else forms.zstd().ZstdCompressor(9).compress(plain)
    from safetensors.torch import save

    contents.check(model)
    model = permanent(model)
    state = model.state_dict()
    forms.check_types(state.values())
    ties = {name: other for name, other in contents.shared(model).items() if {name, other} <= state.keys()}
    shapes, stored = dict[str, list[int]](), dict[str, Tensor]()
    for name in (name for name in state if name not in ties):
        tensor = contents.packed(state[name])
        tensor = torch.where(tensor == 0, torch.zeros_like(tensor), tensor)
        if parts := forms.parts_of(tensor, form):
            shapes[name] = list(tensor.shape)
        stored |= {name + part: values for part, values in (parts or {"": tensor}).items()}
    how = {"shapes": shapes, "shared": ties}
    return save(stored, {"cdlib": json.dumps(how | {"digest": digest(how, stored)})})


def decode(content: bytes | bytearray | memoryview) -> dict[str, Tensor]:
    """Return the state dict that `encode` stored, whatever its form, from bytes or anything that holds bytes.

    Raises
    ------
    CdlibError
        If it holds no bytes, or they were cut short, altered, or not made by `encode`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = content if isinstance(content, bytes) else memoryview(content).tobytes()
    except TypeError as error:
        raise CdlibError(f"content is {type(content).__name__!r}, not bytes: give what encode made.") from error
    try:
        plain = forms.decompressed(content)
        header = json.loads(plain[8 : 8 + int.from_bytes(plain[:8], "little")])
        how, stored = json.loads(header["__metadata__"]["cdlib"]), load(plain)
        intact = how.pop("digest") == digest(how, stored)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise CdlibError(f"cannot read {len(content)} bytes ({line(error)}): give what encode made.") from error
    if not intact:
        raise CdlibError("the bytes were altered after encode made them (another digest): get them again.")
    parts = {name + part for name in how["shapes"] for part in forms.PARTS}
    state = {name: tensor for name, tensor in stored.items() if name not in parts}
    state |= {name: forms.whole(name, shape, stored) for name, shape in how["shapes"].items()}
    return state | {name: state[other] for name, other in how["shared"].items()}


def sizes(model: nn.Module) -> pd.DataFrame:
    """Return the bytes of a network in each form: index `form`, columns `bytes` and `relative` (to "dense").

    Raises
    ------
    CdlibError
        As `encode`.
    """
    found = pd.Series({form: len(encode(model, form)) for form in FORMS}).rename_axis("form")
    return pd.DataFrame({"bytes": found, "relative": found / found["dense"]})


def two_to_four(model: nn.Module, example_input: ExampleInput | None = None) -> nn.Module:
    """Return a copy with 2:4 masks: of every four weights in a row along the inputs, the two largest stay.

    Parameters
    ----------
    model : nn.Module
        Any network. What is masked already stays masked. Convolutions and linear layers whose inputs (those of a group)
        are no multiple of four keep all weights.
    example_input : tensor or tuple, optional
        What it is called with: only layers that are called then get masks. Without it, all but the output projections
        of PyTorch's attention are taken to be called.

    Returns
    -------
    nn.Module
        With masks like those of `cdlib.pruning.unstructured`, which stay in training.

    Raises
    ------
    CdlibError
        If it is no network that can be pruned, or cannot be captured; or if the weight of one of the layers is
        computed (by weight norm, say), shared with another module or not finite.
    """
    check(model, () if example_input is None else example_input)
    called = None if example_input is None else {call.module for call in capture(model, example_input).calls}
    masked = copied(model)
    fours = {name: layer for name, layer in layers_of(masked, called).items() if _inputs(layer) % 4 == 0}
    put_on(masked, fours)
    for name, layer in fours.items():
        inputs = 0 if getattr(layer, "transposed", False) else 1
        rows = (magnitudes(name, layer) * layer.weight_mask).movedim(inputs, -1)
        keep = torch.zeros(rows.numel() // 4, 4, device=rows.device)
        keep.scatter_(1, rows.reshape(-1, 4).topk(2).indices, 1)
        layer.weight_mask.mul_(keep.view(rows.shape).movedim(-1, inputs))
        layer.weight = layer.weight_orig * layer.weight_mask
    return masked


def _inputs(layer: Any) -> int:
    """The inputs of a layer, or of a group of them."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups


def executable(model: nn.Module, form: str = "csr") -> nn.Module:
    """Return a copy of a network, for inference, whose linear layers run from a sparse form.

    Parameters
    ----------
    model : nn.Module
        Any network; masks are applied first. Modules that use the weight of a layer without calling the layer fail.
        Layers whose weights are computed (by weight norm, say) stay dense.
    form : {"csr", "2:4"}, default "csr"
        "csr": layers in float32 or float64. "2:4": layers in float16 or bfloat16 with at most two non-zero weights in
        every four, on an NVIDIA GPU of compute capability 8.0 or more; layers too small for its kernels stay dense.

    Raises
    ------
    CdlibError
        If the form is unknown, the model is no network, no layer can run from the form, or the hardware or the build of
        PyTorch lacks it.
    """
    changes = {"csr": _csr, "2:4": _semi_structured}
    check_choice("executable form", form, changes)
    root = nn.ModuleDict({"model": permanent(model)})
    linears = {n: m for n, m in root.named_modules() if type(m) is nn.Linear and "weight" in m._parameters}
    made = {id(m): changes[form](name.removeprefix("model."), m) for name, m in linears.items()}
    if not any(made.values()):
        raise CdlibError(f"{type(model).__name__} has no linear layer that can run from {form!r}: see executable().")
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if new := made.get(id(module)):
            root.set_submodule(name, new)
    return root["model"]


class CsrLinear(nn.Module):
    """A linear layer whose weight is held and multiplied as compressed sparse rows, in its own type under autocast."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        parts = forms.csr_parts(weight.detach())
        self.values = nn.Parameter(parts[".values"], requires_grad=False)
        self.columns, self.rows = nn.Buffer(parts[".columns"]), nn.Buffer(parts[".rows"])
        self.bias, self.shape = bias, tuple(weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] from [..., in]."""
        device = self.values.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(self.values.dtype)
        with torch.autocast(device, enabled=False):
            weight = torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape, check_invariants=False)
            y = (weight @ x.reshape(-1, self.shape[1]).t()).t().reshape(*x.shape[:-1], self.shape[0]).contiguous()
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the shape and how full it is."""
        return f"{self.shape[1]} -> {self.shape[0]}, {len(self.values)} weights"


def _csr(name: str, layer: nn.Linear) -> nn.Module | None:
    if layer.weight.dtype not in (torch.float32, torch.float64):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch calls its sparse tensors a beta, once
            new = CsrLinear(layer.weight, layer.bias)
            new(layer.weight[:1].detach())
    except RuntimeError as error:
        raise CdlibError(f"{name}: no product with CSR here ({line(error)}): use another PyTorch or device.") from error
    return new


def _semi_structured(name: str, layer: nn.Linear) -> nn.Module | None:
    weight = layer.weight.detach()
    capability = torch.cuda.get_device_capability(weight.device) if weight.is_cuda else (0, 0)
    if capability < (8, 0) or weight.dtype not in (torch.float16, torch.bfloat16):
        raise CdlibError(
            f"2:4 needs float16 or bfloat16 weights on an NVIDIA GPU of compute capability 8.0 or more, and {name} is "
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}: move it there, or use 'csr'."
        )
    out, inputs = weight.shape
    if out % 32 or inputs % 64:  # the smallest blocks of the two libraries behind it
        return None
    if int((weight.reshape(-1, 4) != 0).sum(1).max()) > 2:
        raise CdlibError(f"{name} has more than two non-zero weights in four: call two_to_four first.")
    layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight), requires_grad=False)
    return layer
