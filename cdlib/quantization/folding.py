"""A network as a graph of modules (`torch.fx`), made ready for integers: batch norms folded, ReLUs before pooling."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from cdlib.errors import CdlibError
from cdlib.text import one_line
from cdlib.torch_state import copied

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
AFTER = {nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_"}
_POOLS = {nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d}
_MOVES = {nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, torch.flatten, torch.permute, torch.reshape}
_MOVES |= {"flatten", "permute", "reshape", "view", "transpose", "contiguous", "squeeze", "unsqueeze"}
SAME_NUMBERS = _POOLS | _MOVES


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.GraphModule:
    """Return a copy of a network in evaluation mode as a graph of modules; a CdlibError if `torch.fx` cannot."""
    network = copied(model).eval()
    for path, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and hasattr(module, "act"):  # timm's norm with an activation
            norm = nn.BatchNorm2d(module.num_features, module.eps, affine=module.affine).eval()
            norm.load_state_dict(module.state_dict(), strict=False)
            network.set_submodule(path, nn.Sequential(norm, module.get_submodule("act")))
    try:
        net = fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:
        raise CdlibError(
            f"{type(model).__name__} cannot be traced by torch.fx ({one_line(error)}): its forward may not branch on "
            "what tensors hold."
        ) from error
    for node in net.graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:  # `conv(input=x)`
            node.args, node.kwargs = tuple(node.kwargs.values()), {}
    return net


def fold(net: fx.GraphModule, only: Collection[str] | None, rows: Collection[str]) -> list[str]:
    """Fold batch norms into the layers before them, in place; returns their names.

    A norm behind max pooling is folded too where all its scales are positive: the largest of scaled numbers is the
    scaled largest.
    """
    modules: dict[Any, Any] = dict(net.named_modules())
    calls, done = calls_of(net.graph), []
    for node in list(net.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        source, positive = node.args[0], norm.weight is None or bool((norm.weight > 0).all())
        while kind_of(source, modules) in _POOLS and len(source.users) == 1 and positive:
            source = source.args[0]
        layer: Any = modules.get(source.target) if source.op == "call_module" else None
        alone = isinstance(layer, LAYERS) and len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
        linear = isinstance(layer, nn.Linear)
        if alone and (only is None or node.target in only) and not (linear and node.target in rows):
            fuse: Any = fuse_linear_bn_weights if linear else fuse_conv_bn_weights
            plain = nn.BatchNorm1d(norm.num_features)  # scales of one, where a norm has none
            scale, shift = (norm.weight, norm.bias) if norm.affine else (plain.weight, plain.bias)
            of_norm = (norm.running_mean, norm.running_var, norm.eps, scale, shift)
            fused = fuse(layer.weight, layer.bias, *of_norm)
            layer.weight, layer.bias = (nn.Parameter(tensor.detach()) for tensor in fused)
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)
            done.append(node.target)
    net.delete_all_unused_submodules()
    net.recompile()
    return done


def relu_before_pools(net: fx.GraphModule) -> None:
    """Move each ReLU before the max pooling it follows, in place: behind a layer, it costs no rounding of its own."""
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        while kind_of(node, modules) in AFTER:
            pool = node.args[0]
            alone = len(pool.users) == len(pool.args[0].users) == 1 if kind_of(pool, modules) in _POOLS else False
            if not alone:  # whoever else reads the numbers would see what an in-place ReLU did to them
                break
            node.replace_all_uses_with(pool)
            node.args = (pool.args[0], *node.args[1:])
            pool.replace_input_with(pool.args[0], node)
            pool.prepend(node)
    net.recompile()


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """The class of the module that a node calls, or the function, or the name of the method."""
    return type(modules[node.target]) if node.op == "call_module" and node.target in modules else node.target


def calls_of(graph: fx.Graph) -> dict[str, int]:
    """How often each module is called, by name."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            found[node.target] = found.get(node.target, 0) + 1
    return found
