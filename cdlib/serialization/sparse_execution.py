"""What zeros are worth on the clock: a copy of a network that runs from a sparse form.

Only linear layers have kernels for that in PyTorch; the bytes of sparse forms are `cdlib.serialization.encoding`'s.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_choice
from cdlib.pruning import permanent
from cdlib.serialization.encoding import csr_parts
from cdlib.text import one_line


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
        parts = csr_parts(weight.detach())
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
        why = one_line(error)
        raise CdlibError(f"{name}: no product with CSR here ({why}): use another PyTorch or device.") from error
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
