"""Cross-layer equalisation: channels of unlike size share one scale badly, so size is moved into the next layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from cdlib.quantization.folding import AFTER, LAYERS, SAME_NUMBERS, kind_of

ROUNDS = 20


@torch.no_grad()
def equalise(net: fx.GraphModule) -> int:
    """Scale the channels between each two layers so that both layers' weights have equal ranges, in place.

    Channel i of the first layer is divided by s_i and that of the second multiplied by it, with
    s_i = sqrt(r1_i / r2_i) for the largest magnitudes r of their weights (Nagel et al. 2019, arXiv:1906.04721,
    equation 11). Between them may stand what such a scale passes through: ReLU, and what only moves or picks numbers. A
    ReLU6 there is replaced by a ReLU, as in the paper. Repeated over all pairs, since one layer is in two of them.

    Returns
    -------
    int
        How many pairs there are.
    """
    modules: dict[Any, Any] = dict(net.named_modules())
    pairs = [pair for node in net.graph.nodes if (pair := _pair(node, modules))]
    for _, _, between in pairs:
        for name in between:
            net.set_submodule(name, nn.ReLU())
    for _ in range(ROUNDS):
        for first, second, _ in pairs:
            one = first.weight.flatten(1).abs().amax(1)
            two = _inputs(second).abs().amax(1)
            scale = torch.where((one > 0) & (two > 0), (one / two).sqrt(), torch.ones_like(one))
            first.weight.div_(scale.view(-1, *[1] * (first.weight.dim() - 1)))
            if first.bias is not None:
                first.bias.div_(scale)
            if _depthwise(second):
                second.weight.mul_(scale.view(-1, *[1] * (second.weight.dim() - 1)))
            else:
                second.weight.mul_(scale.view(1, -1, *[1] * (second.weight.dim() - 2)))
    net.recompile()
    return len(pairs)


def _pair(node: fx.Node, modules: dict[Any, Any]) -> tuple[Any, Any, list[str]] | None:
    """The layer of a node, the next one, and the names of the ReLU6 between them; None if there is no such pair."""
    first = modules.get(node.target) if node.op == "call_module" else None
    if not isinstance(first, LAYERS) or not _alone(first):
        return None
    at, between = node, list[str]()
    while len(at.users) == 1:
        at = next(iter(at.users))
        kind = kind_of(at, modules)
        second = modules.get(at.target) if at.op == "call_module" else None
        if isinstance(second, LAYERS):
            fits = _inputs(second).shape[0] == first.weight.shape[0]
            return (first, second, between) if fits and (_alone(second) or _depthwise(second)) else None
        if kind is nn.ReLU6:
            between.append(str(at.target))
        elif kind not in AFTER and kind not in SAME_NUMBERS:
            return None
    return None


def _alone(layer: Any) -> bool:
    return isinstance(layer, nn.Linear) or layer.groups == 1 or _depthwise(layer)


def _depthwise(layer: Any) -> bool:
    return not isinstance(layer, nn.Linear) and layer.groups == layer.in_channels == layer.out_channels > 1


def _inputs(layer: Any) -> Tensor:
    """The weights by the channel that they multiply, [channels, all else]."""
    weight: Tensor = layer.weight
    return weight.flatten(1) if _depthwise(layer) else weight.transpose(0, 1).flatten(1)
