"""What of a network goes into a file and comes out of it: its tensors, and how they lie in memory.

The file itself is `cdlib.serialization.network_files`' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.surgery import HISTORY, Rewritten
from cdlib.torch_state import (
    channels_last_format,
    check_network,
    check_numbers,
    check_shapes,
    sharing,
    tensors_of,
    tied,
)


def check(model: Any) -> None:
    """Raise if a network has more, or less, than tensors with values.

    A CdlibError if it is no network or compiled, keeps something else than tensors in its state, has a module that was
    cut by itself, or has tensors without values, of unusual layout, or that share memory without being the same.
    """
    check_shapes(check_network(model))
    name, held = type(model).__name__, tensors_of(model)
    for path, inner in model.named_modules():
        if path and HISTORY in vars(inner):
            raise CdlibError(
                f"{path} of {name} was cut by itself: save it alone, or remove units from the whole network."
            )
    for key, tensor in held.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CdlibError(f"{key} is quantized or sparse: save networks whose tensors are ordinary ones.")
    check_numbers(model, name)
    if strange := set(model.state_dict()) - held.keys() - tied(model).keys():
        raise CdlibError(
            f"{name} keeps {min(strange)!r} outside of its parameters and buffers, as quantized layers do: "
            "save a network whose state is parameters and buffers."
        )
    if pair := sharing(held, Tensor.data_ptr):
        raise CdlibError(
            f"{pair[0]} and {pair[1]} share memory without being the same parameter: make one of them a copy, or use "
            "one and the same parameter."
        )


def kind(model: nn.Module) -> str:
    """Return the name of the class of a network, also if all of it was rewritten."""
    return model.stands_for if isinstance(model, Rewritten) else type(model).__name__


def temporary(model: nn.Module) -> set[str]:
    """Return the names of the buffers that a state dict leaves out."""
    modules = model.named_modules()
    return {f"{path}.{name}".lstrip(".") for path, m in modules for name in m._non_persistent_buffers_set}


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as they are written: on the CPU, each in the order of its indices.

    A CdlibError if the safetensors format does not keep the type of one, such as complex128.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    for kind in {tensor.dtype for tensor in tensors.values()}:
        try:
            load(save({"": torch.empty(0, dtype=kind, device="cpu")}))
        except (KeyError, SafetensorError) as error:
            name = str(kind).removeprefix("torch.")
            raise CdlibError(f"safetensors files hold no tensors of {name}: convert them to another type.") from error
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str], caches: list[str]) -> None:
    """Raise if tensors read from a file are not those of a network.

    Buffers that a state dict leaves out may be missing on either side and may have another shape: they are caches. A
    CdlibError for a missing or superfluous tensor, another shape, a floating type instead of another or the other way
    round, or if the network does not share parameters as the saved one did.
    """
    held, loose = tensors_of(model), temporary(model) | set(caches)
    if (own := tied(model)) != dict(ties):
        name = next(key for key in {**ties, **own} if ties.get(key) != own.get(key))
        one, both = ("the file", "the network") if name not in ties else ("the network", "the file")
        other = {**own, **ties}[name]
        raise CdlibError(f"{name} and {other} are one parameter in {both} and two in {one}.")
    faults = [f"it lacks {name!r}" for name in sorted(tensors) if name not in held and name not in loose]
    faults += [f"the file lacks {name!r}" for name in held if name not in tensors and name not in loose]
    for name in (name for name in held if name in tensors and name not in loose):
        here, there = held[name], tensors[name]
        floating = here.is_floating_point() and there.is_floating_point()
        if here.shape != there.shape or not (floating or here.dtype == there.dtype):
            faults.append(f"its {name!r} is {_looks(here)} and the file's {_looks(there)}")
    if faults:
        raise CdlibError(faults[0] + (f" (the first of {len(faults)} faults)" if len(faults) > 1 else ""))


def fill(model: nn.Module, tensors: Mapping[str, Tensor], channels_last: set[str]) -> None:
    """Put tensors that fit into a network, in place, on the devices of those they replace."""
    held = tensors_of(model)
    for name, tensor in tensors.items():
        if name in held:
            if name in channels_last and tensor.dim() in (4, 5):
                tensor = torch.empty_like(tensor, memory_format=channels_last_format(tensor.dim())).copy_(tensor)
            held[name].data = tensor.to(held[name].device)


def _looks(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
