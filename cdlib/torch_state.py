"""What a network is and holds: its tensors by name, which of them are one or share memory, and which are masks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cdlib.errors import CdlibError
from cdlib.text import one_line

M = TypeVar("M", bound=nn.Module)


def check_module(model: Any, name: str = "model") -> nn.Module:
    """Return a network, compiled or not; a CdlibError, in which it is called `name`, for anything else."""
    if not isinstance(model, nn.Module):
        raise CdlibError(f"{name} is {type(model).__name__!r}, not a torch.nn.Module; pass the network itself.")
    return model


def check_network(model: Any) -> nn.Module:
    """Return a network that is one, and not compiled into another; a CdlibError for anything else."""
    scripted = any(isinstance(m, torch.jit.ScriptModule) for m in check_module(model).modules())
    if scripted or hasattr(model, "_orig_mod"):
        raise CdlibError(f"{type(model).__name__} is compiled: pass the Python network that it was made from.")
    return model


def copied(model: M) -> M:
    """Return a deep copy of a network; a CdlibError if it cannot be copied.

    Weights that its hooks compute (masks, weight norm) are detached in the copy.
    """
    computed = [
        t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor) and not t.is_leaf
    ]
    known: dict[int, Any] = {id(t): t.detach().clone() for t in computed}
    for module in model.modules():  # a dozen empty dictionaries for hooks each, which `deepcopy` takes long over
        known |= {id(v): type(v)() for v in vars(module).values() if type(v) in (dict, OrderedDict) and not v}
    try:
        return copy.deepcopy(model, known)
    except Exception as error:
        raise CdlibError(f"{type(model).__name__} cannot be copied ({one_line(error)}).") from error


def check_shapes(model: nn.Module) -> None:
    """Raise a CdlibError if a parameter or buffer gets its shape only when the network runs, as in `nn.LazyLinear`."""
    for name, tensor in _named(model):
        if nn.parameter.is_lazy(tensor):
            raise CdlibError(f"{name} has no shape yet: run the network once first.")


def check_numbers(model: nn.Module, name: str = "the model") -> None:
    """Raise a CdlibError if a network has shapes only (`torch.device("meta")`); `name` is what the error calls it."""
    for path, tensor in _named(model):
        if tensor.is_meta:
            raise CdlibError(f"{name} is on the meta device, where {path} has no numbers: load it on another one.")


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter or buffer of a model lives; the CPU if it has none, as packed int8 models do."""
    return next((tensor.device for _, tensor in _named(model)), torch.device("cpu"))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network, the tensors themselves, by name; a shared one once."""
    further = tied(model)
    return {name: tensor for name, tensor in _named(model) if name not in further}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the channels of a tensor of images or volumes are what lies closest in memory."""
    if tensor.dim() not in (4, 5) or not tensor.numel():
        return False
    formats = (channels_last_format(tensor.dim()), torch.contiguous_format)
    last, first = (torch.empty_like(tensor, device="meta", memory_format=f).stride() for f in formats)
    return tensor.stride() == last != first


def channels_last_format(dims: int) -> torch.memory_format:
    """The format in which the channels of images (4 dimensions) or volumes (5) lie closest in memory."""
    return torch.channels_last if dims == 4 else torch.channels_last_3d


def tied(model: nn.Module) -> dict[str, str]:
    """Return the further names of parameters and buffers that have several, with the first, which `tensors_of` has."""
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(tensor), name) for name, tensor in _named(model)}
    return {name: other for name, other in found.items() if name != other}


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def sharing(tensors: Mapping[str, Tensor], place: Callable[[Tensor], int]) -> tuple[str, str] | None:
    """Return the names of the first tensor that lies in the same place as one before it, and of that one; or None.

    `tensors` are distinct, as of `tensors_of`; those without values or a memory of their own are passed over. The
    `place` of one is its ``data_ptr``, or that of its storage if views of one memory count too.
    """
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        held = tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided
        if held and (other := first.setdefault(place(tensor), name)) != name:
            return name, other
    return None


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on any device, in the order of its indices."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def packed_bytes(numbers: int, bits: int) -> int:
    """Return the bytes that so many integers take one after the other, without gaps."""
    return -(-numbers * bits // 8)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that hold the numbers of one: itself, or if sparse or packed its values, then others."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]
    if is_traceable_wrapper_subclass(tensor):  # such as torchao's, of integers and scales
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor]


def bytes_held(tensor: Tensor) -> int:
    """Return how many bytes the elements of a tensor take, and the indices if it is sparse."""
    return sum(part.numel() * part.element_size() for part in parts_of(tensor))


def mask_name(name: str) -> str | None:
    """Return the name of the mask that `torch.nn.utils.prune` keeps beside a parameter of this name, if it has one."""
    return f"{name.removesuffix('_orig')}_mask" if name.endswith("_orig") else None
