"""Where weights come from: ImageNet files fetched once, and checkpoints of your own.

Fetching keeps to the libraries' published files and leaves either a whole file or none. What to do with the weights is
left to `cdlib.models`, writing checkpoints to `cdlib.train`.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib.errors import CdlibError

# Seconds without an answer after which a server counts as out of reach.
_PATIENCE = 20.0


def load(model: nn.Module, file: str | Path) -> None:
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
    state = _read(Path(file).expanduser())
    wanted = model.state_dict()
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


def from_torchvision(name: str) -> tuple[Any, Path]:
    """Return torchvision's default ImageNet weights of `name` (the enum member) and their file, fetched if need be.

    Raises
    ------
    CdlibError
        There are none, or the file is not there and cannot be fetched.
    """
    import torchvision.models as zoo

    chosen = getattr(zoo.get_model_weights(name), "DEFAULT", None)
    if chosen is None:
        raise CdlibError(f"torchvision has no pretrained weights of {name!r}: build it with pretrained=False.")
    file = _folder() / chosen.url.rpartition("/")[2]
    return chosen, _fetch(name, chosen.url, file)


def from_timm(name: str) -> Path:
    """Return the file of timm's default pretrained weights of `name`, fetched if need be.

    It is looked for in torch's folder of checkpoints first, then in the cache of huggingface_hub.

    Raises
    ------
    CdlibError
        There are none, or the file is not there and cannot be fetched.
    """
    import timm
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise CdlibError(f"timm has no pretrained weights of {name!r}: build it with pretrained=False.")
    if not config.hf_hub_id:
        url = str(config.url)
        return _fetch(name, url, _folder() / url.rpartition("/")[2])
    remote = config.hf_hub_filename or "model.safetensors"
    file = _folder() / f"{config.hf_hub_id.rpartition('/')[2]}{Path(remote).suffix}"
    cached = try_to_load_from_cache(config.hf_hub_id, remote)
    if isinstance(cached, str) and not file.exists():
        return Path(cached)
    return _fetch(name, hf_hub_url(config.hf_hub_id, remote), file)


def _fetch(name: str, url: str, file: Path) -> Path:
    """Return `file`, downloaded from `url` unless it is there; torchvision's names carry the start of the hash."""
    if file.exists():
        return file
    digest = re.search(r"-([a-f0-9]{8,})\.pth$", file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(_PATIENCE):
            torch.hub.download_url_to_file(url, str(file), digest and digest.group(1))
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).strip("<>").split())
        raise CdlibError(
            f"cannot fetch the ImageNet weights of {name!r} ({reason}): download {url} and save it as "
            f"{file}, or build the network with pretrained=False."
        ) from error
    return file


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(file: Path) -> Mapping[str, torch.Tensor]:
    if not file.is_file():
        raise CdlibError(f"checkpoint {file} is not a file: give a .safetensors file or one written by torch.save.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise CdlibError(
            f"checkpoint {file} cannot be read ({type(error).__name__}: {reason}): it is cut short, damaged, or holds "
            "more than tensors."
        ) from error
    for key in ("model", "state_dict", "tensors"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = {**state[key], **state.get("average", {})}
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CdlibError(f"checkpoint {file} holds no state dict: save model.state_dict().")
    return state
