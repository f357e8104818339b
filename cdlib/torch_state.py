"""What a network holds: its tensors by name, which of them are one, and which are masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError


def check_network(model: Any) -> nn.Module:
    """Return a network that is one, and not compiled.

    Raises
    ------
    CdlibError
        For anything else.
    """
    if not isinstance(model, nn.Module):
        raise CdlibError(f"model is {type(model).__name__!r}, not a torch.nn.Module; pass the network itself.")
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in model.modules())
    if scripted or hasattr(model, "_orig_mod"):
        raise CdlibError(f"{type(model).__name__} is compiled: pass the Python network that it was made from.")
    return model


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network, the tensors themselves, by name; a shared one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def mask_name(name: str) -> str | None:
    """Return the name of the mask that `torch.nn.utils.prune` keeps beside a parameter of this name, if it has one."""
    return f"{name.removesuffix('_orig')}_mask" if name.endswith("_orig") else None
