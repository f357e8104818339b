"""Where quantizers stand: a network traced and its batch norms folded, what integer operators read and write rounded.

The graph is `torch.fx`'s, at the level of modules. Integer operators are convolutions and linear layers, sums, and
averages over whole images; a ReLU behind one is done within it. Operators that only move or pick numbers (max pooling,
permutations, reshapes) keep them on the grid. Everything else (GELU, layer norm, products) computes in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from cdlib.errors import CdlibError, unknown
from cdlib.models import RECIPE
from cdlib.quantization.quantizers import QuantizedLayer, QuantizedSum, Quantizer
from cdlib.surgery import HISTORY
from cdlib.text import one_line
from cdlib.torch_state import check_module, check_numbers, copied, tensors_of

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
AFTER = {nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_"}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MEANS = {nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d}
_POOLS = {nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d}
_MOVES = {nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, torch.flatten, torch.permute, torch.reshape}
_MOVES |= {"flatten", "permute", "reshape", "view", "transpose", "contiguous", "squeeze", "unsqueeze"}
SAME_NUMBERS = _POOLS | _MOVES


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


class Quantized(nn.Module):
    """A network with quantizers; made by the functions of `cdlib.quantization`.

    Attributes
    ----------
    net : torch.fx.GraphModule
        The network; ``net.code`` shows where quantizers stand.
    bits : dict of str to int
        Of the weights, for each layer that is quantized.
    in_float : dict of str to str
        Layers that compute in float32 all the same, and why.
    plan : dict
        What `prepared` needs to place the same quantizers again, as JSON has it.
    source : str
        The class of the network that was quantized.
    """

    def __init__(self, net: fx.GraphModule, in_float: dict[str, str], plan: dict[str, Any], source: str) -> None:
        super().__init__()
        self.net, self.in_float, self.plan, self.source = net, in_float, plan, source

    @property
    def bits(self) -> dict[str, int]:
        """Of the weights, by layer."""
        return {name: layer.weights.bits for name, layer in self.layers().items()}

    def forward(self, *inputs: Any) -> Any:
        """What the network computes, with rounded numbers."""
        return self.net(*inputs)

    def layers(self) -> dict[str, QuantizedLayer]:
        """The quantized layers, by the names they have in the network."""
        return {name: m for name, m in self.net.named_modules() if isinstance(m, QuantizedLayer)}

    def activations(self) -> dict[str, Quantizer]:
        """The quantizers of what passes between layers."""
        return {name: m for name, m in self.net.named_children() if isinstance(m, Quantizer)}


def prepared(
    model: nn.Module,
    bits: int | dict[str, int],
    *,
    per_channel: bool,
    keep: Collection[str] = (),
    norms: Collection[str] | None = None,
    change: Callable[[fx.GraphModule], Any] | None = None,
) -> Quantized:
    """Return a copy of a network, in evaluation mode, with quantizers that have no ranges yet.

    Parameters
    ----------
    model : nn.Module
        `torch.fx` must be able to trace it.
    bits : int, or dict of str to int
        Of the weights: of all layers, or of those named, the others staying in float32.
    per_channel : bool
        Weights have a scale for each output channel.
    keep : collection of str
        Names of layers that stay in float32.
    norms : collection of str, optional
        The batch norms to fold into the layers before them; by default all that can be.
    change : callable, optional
        What is done to the folded network before quantizers are placed, such as `equalise`.

    Raises
    ------
    CdlibError
        If the network cannot be traced, is not of float32, is masked, shares weights or is quantized already; if a
        layer of `keep` or `bits` is unknown, or none is left to quantize.
    """
    check_numbers(check_module(model))
    if isinstance(model, Quantized):
        raise CdlibError("the network is quantized already: give it other bits by apply, or train it further by train.")
    check_plain(model)
    net = _traced(model)
    folded = _fold(net, norms)
    _before_pools(net)
    if change is not None:
        change(net)
    modules, calls = dict(net.named_modules()), _calls(net.graph)
    names = [name for name, module in modules.items() if isinstance(module, LAYERS) and calls.get(name)]
    given = bits if isinstance(bits, dict) else dict.fromkeys(names, bits)
    for name in (*keep, *given):
        if name not in names:
            raise unknown("layer", name, names)
    in_float = {name: "kept by name" for name in names if name in keep or name not in given}
    in_float |= {name: "used more than once" for name in names if calls[name] > 1}
    in_float |= {
        name: f"no integer kernel for {type(module).__name__}"
        for name, module in modules.items()
        if name in calls and name not in names and any(True for _ in module.parameters())
    }
    widths = {name: given[name] for name in names if name not in in_float}
    if not widths:
        said = "; ".join(f"{name}: {why}" for name, why in in_float.items()) or "it has no such layer"
        raise CdlibError(f"no convolution or linear layer of the network can be quantized ({said}).")
    for name, width in widths.items():
        net.set_submodule(name, QuantizedLayer(modules[name], width, per_channel))
    _place(net, modules, set(widths))
    plan = {"bits": widths, "per_channel": per_channel, "norms": folded}
    quantized = Quantized(net, in_float, plan, type(model).__name__)
    for attribute in (RECIPE, HISTORY):
        if hasattr(model, attribute):
            setattr(quantized, attribute, getattr(model, attribute))
    return quantized.eval()


def check_plain(model: nn.Module) -> None:
    """Raise unless a network is of float32 and its convolutions and linear layers have weights of their own."""
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CdlibError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: give the network in float32.")
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS) and "weight" not in layer._parameters:
            raise CdlibError(
                f"{name} has weights that something computes, such as masks or a codebook: make them permanent first."
            )


def _traced(model: nn.Module) -> fx.GraphModule:
    network = copied(model).eval()
    for path, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and hasattr(module, "act"):  # timm's norm with an activation
            norm = nn.BatchNorm2d(module.num_features, module.eps, affine=module.affine).eval()
            norm.load_state_dict(module.state_dict(), strict=False)
            network.set_submodule(path, nn.Sequential(norm, module.get_submodule("act")))
    try:
        return fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:
        raise CdlibError(
            f"{type(model).__name__} cannot be traced by torch.fx ({one_line(error)}): its forward may not branch on "
            "what tensors hold."
        ) from error


def _fold(net: fx.GraphModule, only: Collection[str] | None) -> list[str]:
    """Fold batch norms into the layers before them, in place; returns their names.

    A norm behind max pooling is folded too where all its scales are positive: the largest of scaled numbers is the
    scaled largest.
    """
    modules: dict[Any, Any] = dict(net.named_modules())
    calls, done = _calls(net.graph), []
    for node in list(net.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        source, positive = node.args[0], norm.weight is None or bool((norm.weight > 0).all())
        while kind_of(source, modules) in _POOLS and len(source.users) == 1 and positive:
            source = source.args[0]
        layer: Any = modules.get(source.target) if source.op == "call_module" else None
        alone = isinstance(layer, LAYERS) and len(source.users) == 1 and calls[source.target] == calls[node.target] == 1
        if alone and (only is None or node.target in only):
            fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
            of_norm = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            fused = fuse(layer.weight, layer.bias, *of_norm)
            layer.weight, layer.bias = (nn.Parameter(tensor.detach()) for tensor in fused)
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)
            done.append(node.target)
    net.delete_all_unused_submodules()
    net.recompile()
    return done


def _before_pools(net: fx.GraphModule) -> None:
    """Move each ReLU before the max pooling it follows, in place: behind a layer, it costs no rounding of its own."""
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        while kind_of(node, modules) in AFTER:
            pool = node.args[0]
            if kind_of(pool, modules) not in _POOLS or len(pool.users) > 1:
                break
            node.replace_all_uses_with(pool)
            node.args = (pool.args[0], *node.args[1:])
            pool.replace_input_with(pool.args[0], node)
            pool.prepend(node)
    net.recompile()


def _place(net: fx.GraphModule, modules: dict[str, nn.Module], layers: Collection[str]) -> None:
    """Put a quantizer behind whatever an integer operator reads or writes, in place."""
    on_grid: set[fx.Node] = set()
    added: list[fx.Node] = []
    for node in list(net.graph.nodes):
        kind = kind_of(node, modules)
        two = len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
        sums = two and kind in _SUMS
        if kind in SAME_NUMBERS and node.args and node.args[0] in on_grid:
            on_grid.add(node)
        if node.target not in layers and not sums and kind not in _MEANS:
            continue
        added += [node] if sums else []
        for source in node.args[: 2 if sums else 1]:
            _rounded(net, source, on_grid)
        users = list(node.users)
        _rounded(net, users[0] if len(users) == 1 and kind_of(users[0], modules) in AFTER else node, on_grid)
    for node in added:
        net.add_submodule(f"{node.name}_exact", QuantizedSum())
        with net.graph.inserting_before(node):
            node.replace_all_uses_with(net.graph.call_module(f"{node.name}_exact", node.args))
        net.graph.erase_node(node)
    net.recompile()
    now: dict[Any, Any] = dict(net.named_modules())
    for node in net.graph.nodes:
        if isinstance(now.get(node.target), QuantizedLayer | QuantizedSum):
            after: Any = next(iter(node.users))
            while not isinstance(now.get(after.target), Quantizer):
                after = next(iter(after.users))
            now[node.target].neighbours = *(now[_source(arg, now).target] for arg in node.args), now[after.target]


def _source(node: Any, modules: dict[Any, Any]) -> fx.Node:
    """The quantizer that the numbers of a node come from."""
    while not isinstance(modules.get(node.target), Quantizer):
        node = node.args[0]
    found: fx.Node = node
    return found


def _rounded(net: fx.GraphModule, node: fx.Node, on_grid: set[fx.Node]) -> None:
    """Put a quantizer behind a node unless its numbers are on a grid already."""
    if node in on_grid:
        return
    name = f"{node.name}_rounded"
    net.add_submodule(name, Quantizer(8, signed=False))
    with net.graph.inserting_after(node):
        quantizer = net.graph.call_module(name)
    node.replace_all_uses_with(quantizer)
    quantizer.args = (node,)
    on_grid.update({node, quantizer})


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """The class of the module that a node calls, or the function, or the name of the method."""
    return type(modules[node.target]) if node.op == "call_module" and node.target in modules else node.target


def _calls(graph: fx.Graph) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            found[node.target] = found.get(node.target, 0) + 1
    return found
