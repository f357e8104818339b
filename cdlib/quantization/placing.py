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

from cdlib.errors import CdlibError, unknown
from cdlib.models import CARD, RECIPE
from cdlib.quantization.folding import AFTER, LAYERS, SAME_NUMBERS, calls_of, fold, kind_of, relu_before_pools, traced
from cdlib.quantization.quantizers import QuantizedLayer, QuantizedSum, Quantizer
from cdlib.surgery import HISTORY
from cdlib.torch_state import check_module, check_numbers, tensors_of

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MEANS = {nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d}
_SIZES = {"size", "dim", "numel"}


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
    rows: Collection[str] = (),
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
    rows : collection of str, optional
        Batch norms that see linear layers' outputs of more than two dimensions, whose features are not what they scale:
        these stay.
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
    net = traced(model)
    folded = fold(net, norms, rows)
    relu_before_pools(net)
    if change is not None:
        change(net)
    modules, calls = dict(net.named_modules()), calls_of(net.graph)
    names = [name for name, module in modules.items() if isinstance(module, LAYERS) and calls.get(name)]
    given = bits if isinstance(bits, dict) else dict.fromkeys(names, bits)
    if isinstance(keep, str):
        raise CdlibError(f"keep={keep!r}: give a list of names.")
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
    for attribute in (RECIPE, HISTORY, CARD):
        if hasattr(model, attribute):
            setattr(quantized, attribute, getattr(model, attribute))
    return quantized.eval()


def check_quantized(model: object) -> None:
    """Raise unless something is a network that was quantized."""
    if not isinstance(model, Quantized):
        raise CdlibError(
            f"model is {type(model).__name__!r}, not quantized: give what cdlib.quantization.static returns."
        )


def check_plain(model: nn.Module) -> None:
    """Raise unless a network is of float32 and its convolutions and linear layers have weights of their own."""
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise CdlibError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}: give the network in float32.")
    owners: dict[int, str] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        if "weight" not in layer._parameters:
            raise CdlibError(
                f"{name} has weights that something computes, such as masks or a codebook: make them permanent first."
            )
        if (other := owners.setdefault(id(layer.weight), name)) != name:
            raise CdlibError(f"{name} and {other} share their weights: give each its own copy of them first.")


def _place(net: fx.GraphModule, modules: dict[str, nn.Module], layers: Collection[str]) -> None:
    """Put a quantizer behind whatever an integer operator reads or writes, in place."""
    on_grid: set[fx.Node] = set()
    added: list[fx.Node] = []
    numbers: set[fx.Node] = set()  # sizes, and what is worked out from them: no tensors
    for node in list(net.graph.nodes):
        kind = kind_of(node, modules)
        if kind in _SIZES or (kind is getattr and node.args[1] in ("shape", "ndim")):
            numbers.add(node)
        elif node.op == "call_function" and node.all_input_nodes and numbers.issuperset(node.all_input_nodes):
            numbers.add(node)
            continue
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
