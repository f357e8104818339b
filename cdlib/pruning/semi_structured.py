"""Semi-structured pruning: masks in the 2:4 pattern, for which GPUs have kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cdlib.graph import ExampleInput, capture
from cdlib.grouping import check
from cdlib.pruning.weight_masks import layers_of, magnitudes, put_on
from cdlib.torch_state import copied


def two_to_four(model: nn.Module, example_input: ExampleInput | None = None) -> nn.Module:
    """Return a copy with 2:4 masks: of every four weights in a row along the inputs, the two largest stay.

    The masks are like those of `cdlib.pruning.unstructured`, and stay in training.

    Parameters
    ----------
    model : nn.Module
        Any network. What is masked already stays masked. Convolutions and linear layers whose inputs (those of a group)
        are no multiple of four keep all weights.
    example_input : tensor or tuple, optional
        What it is called with: only layers that are called then get masks. Without it, all but the output projections
        of PyTorch's attention are taken to be called.

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
