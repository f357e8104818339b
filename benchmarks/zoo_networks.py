"""The networks of the zoo: which ones, with which inputs, and what to minimise."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from capture import FAMILIES, network
from torch import Tensor, nn

from cdlib.graph import Graph, Op, capture, tensors

__all__ = ["FAMILIES", "loss", "several", "timm_names", "zoo_network"]

KEPT = Path(__file__).parents[1] / "_build" / "zoo_timm.json"
SIZES = (64, 128, 224, 256)


def zoo_network(family: str, name: str) -> tuple[nn.Module, tuple[Any, ...], int | None]:
    """A network in evaluation mode, the arguments to call it with, and the dimension that counts samples."""
    if family == "timm":
        import timm

        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        return model, (torch.randn(1, 3, *[runs_at(model)[0]] * 2),), 0
    model, inputs = network(family, name)
    if family != "detection":
        return model, inputs, 0
    for module in model.modules():  # with random weights, all scores are low
        if hasattr(module, "score_thresh"):
            module.score_thresh = 0.0
    return model, inputs, None


def several(inputs: tuple[Any, ...], samples: int) -> tuple[Any, ...]:
    """Arguments for several samples, with random numbers."""
    if isinstance(inputs[0], list):
        return ([torch.rand_like(inputs[0][0]) for _ in range(samples)],)
    return tuple(torch.randn(samples, *x.shape[1:]) for x in inputs)


def loss(family: str, model: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    """A number to minimise."""
    if family != "detection":
        found = [t for t in tensors(model(*inputs)) if t.is_floating_point()]
        return torch.stack([t.square().mean() for t in found]).sum()
    size = inputs[0][0].shape[-2:]
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 80.0, 100.0], [30.0, 40.0, 120.0, 90.0]]),
        "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, *size, dtype=torch.uint8),
        "keypoints": torch.cat([torch.rand(2, 17, 2) * 40 + 40, torch.ones(2, 17, 1)], dim=2),
    }
    losses = model(*inputs, [dict(target) for _ in inputs[0]])
    return torch.stack(list(losses.values())).sum()


def timm_names(many: int = 60) -> list[str]:
    """Convolutional networks of timm of different families: of each the smallest with a million parameters or more.

    Convolutional means that some convolution slides (its kernel is larger than its stride), and that no product has two
    operands that depend on the input, as attention has. Of one family are the networks of a module file whose names
    begin with the same letters. First comes the smallest of every module file, then the next family of each, until
    there are enough. Finding them takes minutes, so the answer is kept in ``_build``.
    """
    if not KEPT.exists():
        import timm

        files = [sorted(_smallest(timm.list_models(module=module))) for module in timm.list_modules()]
        found = sorted((rank, size, name) for file in files for rank, (size, name) in enumerate(file))
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(found))
    return sorted(name for _, _, name in json.loads(KEPT.read_text())[:many])


def _smallest(names: list[str]) -> Iterator[tuple[int, str]]:
    import timm

    families: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        with contextlib.suppress(Exception), torch.device("meta"):
            size = sum(p.numel() for p in timm.create_model(name).parameters())
            families.setdefault(re.match("[a-z]*", name)[0], []).append((size, name))
    for members in families.values():
        size, name = min([member for member in members if member[0] >= 1_000_000], default=(0, ""))
        if name and _is_convolutional(timm.create_model(name).eval()):
            yield size, name


def _is_convolutional(model: nn.Module) -> bool:
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    slides = any(k > s for m in convolutions for k, s in zip(m.kernel_size, m.stride, strict=True))
    return slides and not any(_attends(op) for op in runs_at(model)[1].ops)


def runs_at(model: nn.Module) -> tuple[int, Graph]:
    """The smallest size of images that a network takes, and what it does with one."""
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    for size in (*SIZES, own):
        with contextlib.suppress(Exception):
            return size, capture(model, torch.zeros(1, 3, size, size))
    raise ValueError(f"{type(model).__name__} takes none of the sizes {(*SIZES, own)}")


def _attends(op: Op) -> bool:
    if op.name in ("mm", "bmm", "addmm", "baddbmm"):
        return all(value.kind == "activation" for value in op.inputs[-2:])
    return op.name == "scaled_dot_product_attention"
