"""Weights from checkpoints of your own; those that training writes are made in `cdlib.train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.text import one_line


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Load a checkpoint into `model`, in place: all of its weights or, when it does not fit, none.

    Parameters
    ----------
    model : torch.nn.Module
        The network, on any device.
    file : str or path
        A `.safetensors` file; one written by `torch.save` that holds a state dict, bare or under the key "model" or
        "state_dict"; or a checkpoint of `cdlib.train.fit`, whose running average counts if it has one. It is read
        without unpickling code.

    Raises
    ------
    CdlibError
        The file is missing, damaged, holds something else, or belongs to another network.
    """
    state, wanted = _read(Path(file).expanduser()), model.state_dict()
    faults = [f"lacks {key!r}" for key in wanted if key not in state]
    faults += [f"has {key!r}, which the network lacks" for key in state if key not in wanted]
    faults += [
        f"has {key!r} of shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise CdlibError(f"checkpoint {file} does not fit {type(model).__name__}: it {faults[0]}{more}.")
    model.load_state_dict(state)


def _read(file: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    if not file.is_file():
        raise CdlibError(f"checkpoint {file} is not a file: give a .safetensors file or one written by torch.save.")
    try:
        safe = file.suffix == ".safetensors"
        state: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CdlibError(
            f"checkpoint {file} cannot be read ({one_line(error)}): it is damaged, cut short, or not just tensors."
        ) from error
    for key in ("model", "state_dict", "tensors"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = {**state[key], **state.get("average", {})}
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CdlibError(f"checkpoint {file} holds no state dict: save model.state_dict().")
    return state
