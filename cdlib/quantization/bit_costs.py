"""What few bits cost each layer: bytes, the loss they add, and how a second derivative foretells it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from cdlib.complexity import profile
from cdlib.data import Split, batches
from cdlib.errors import CdlibError, check_whole, unknown
from cdlib.graph import ExampleInput
from cdlib.quantization.placing import Quantized, check_quantized
from cdlib.quantization.quantizers import QuantizedLayer, Quantizer
from cdlib.quantization.ranges import set_weight_range
from cdlib.torch_state import copied, packed_bytes
from cdlib.train import evaluate, evaluating

WIDTHS = tuple(range(2, 9))
FLOAT = 32
BATCH = 64  # images at a time, of a network that rounds after each layer


class Mixture:
    """A quantized network whose layers change their bits from one evaluation to the next.

    Parameters
    ----------
    model : Quantized
        Of `cdlib.quantization.static`, with 8 bits; it is copied.
    judge : Split
        Labelled images on which losses are measured, none of them a test image.

    Attributes
    ----------
    sizes : dict of str to int
        Weights of each layer.
    evaluations : int
        How often the network was evaluated so far, which is what a search costs.
    """

    def __init__(self, model: Quantized, judge: Split) -> None:
        check_quantized(model)
        self.model, self.judge, self.evaluations = copied(model), judge, 0
        self.layers = self.model.layers()
        self.sizes = {name: layer.weight().numel() for name, layer in self.layers.items()}
        self._made: dict[tuple[str, int], Quantizer] = {}
        self._known: dict[tuple[int, ...], float] = {}

    def bytes(self, bits: Mapping[str, int]) -> int:
        """The bytes of all weights, packed."""
        return sum(packed_bytes(size, bits[name]) for name, size in self.sizes.items())

    def use(self, bits: Mapping[str, int]) -> Quantized:
        """Give each layer its bits, with the ranges of least squared error; returns the network itself."""
        for name, layer in self.layers.items():
            layer.weights = self._quantizer(name, bits[name])
        return self.model

    def _quantizer(self, name: str, bits: int) -> Quantizer:
        if (name, bits) not in self._made:
            self._made[name, bits] = _of_weights(self.layers[name], bits)
        return self._made[name, bits]

    def loss(self, bits: Mapping[str, int]) -> float:
        """The mean cross-entropy in nats; measured once for the same bits."""
        key = tuple(bits[name] for name in self.sizes)
        if key not in self._known:
            self._known[key] = evaluate(self.use(bits), self.judge, batch_size=BATCH).loss
            self.evaluations += 1
        return self._known[key]

    def increases(self) -> dict[str, dict[int, float]]:
        """How much the loss grows when one layer alone has few bits and all others have 8, by layer and bits."""
        most = dict.fromkeys(self.sizes, WIDTHS[-1])
        base = self.loss(most)
        return {name: {b: self.loss({**most, name: b}) - base for b in WIDTHS} for name in self.sizes}

    def foretold(self, draws: int = 8, seed: int = 0) -> dict[str, dict[int, float]]:
        """The growth of the loss that second derivatives foretell (HAWQ-V2, Dong et al. 2020, arXiv:1911.03852).

        The mean of the Hessian's diagonal over a layer's weights, half of which is multiplied by the squared error of
        rounding them. The diagonal's sum is estimated by Hutchinson's method: `draws` random vectors of signs, for the
        float network that the quantizers stand in.
        """
        net, generator = copied(self.model), torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, Quantizer):
                module.active = False
        weights = [layer.weight().requires_grad_() for layer in net.layers().values()]
        traces = [0.0] * len(weights)
        with evaluating(net), torch.enable_grad():
            x, y = next(batches(self.judge, min(len(self.judge), 256)))
            grads = torch.autograd.grad(F.cross_entropy(net(x), y), weights, create_graph=True)
            for _ in range(draws):
                signs = [torch.randint(0, 2, w.shape, generator=generator).to(w) * 2 - 1 for w in weights]
                products = torch.autograd.grad(grads, weights, signs, retain_graph=True)
                traces = [t + float((s * p).sum()) / draws for t, s, p in zip(traces, signs, products, strict=True)]
        self.evaluations += 2 * draws  # a product with the Hessian costs about two gradients
        found: dict[str, dict[int, float]] = {}
        for (name, layer), trace in zip(self.layers.items(), traces, strict=True):
            found[name] = {}
            for bits in WIDTHS:
                error = (self._quantizer(name, bits)(layer.weight()) - layer.weight()).detach().square().sum().item()
                found[name][bits] = 0.5 * max(trace, 0.0) / self.sizes[name] * error
        return found


def apply(model: Quantized, bits: Mapping[str, int]) -> Quantized:
    """Return a quantized network with other bits for its weights, with the ranges of least squared error.

    A CdlibError for a layer that is unknown, and for bits that are not 2 to 8. Layers that are not named keep theirs.
    """
    check_quantized(model)
    if not isinstance(bits, Mapping):
        raise CdlibError(f"bits={bits!r}: give the bits of each layer by its name.")
    network = copied(model)
    layers = network.layers()
    for name, width in bits.items():
        if name not in layers:
            raise unknown("layer", name, layers)
        check_whole("bits", width, WIDTHS[0], WIDTHS[-1])
        layers[name].weights = _of_weights(layers[name], width)
        layers[name].make_room()
    network.plan = {**network.plan, "bits": network.bits}
    return network.eval()


def _of_weights(layer: QuantizedLayer, bits: int) -> Quantizer:
    """A quantizer of other bits for the weights of a layer, with the range of least squared error."""
    made = Quantizer(bits, signed=True, axis=layer.weights.axis)
    set_weight_range(made, layer.weight(), "mse")
    return made


def check_budget(least: int, budget: int) -> None:
    """Raise unless 2 bits for every weight, the least that there is, fit into a budget of bytes."""
    if not isinstance(budget, int) or budget < least:
        raise CdlibError(f"budget_bytes={budget!r}: with {WIDTHS[0]} bits for every weight it takes {least} bytes.")


def knapsack(costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return the bits by layer whose costs have the least sum within a budget of bytes: the exact optimum.

    By dynamic programming over the layers. Of all ways so far only those stay than which none is smaller and as good. A
    CdlibError if 2 bits do not fit.
    """
    least = [packed_bytes(size, WIDTHS[0]) for size in sizes.values()]
    check_budget(sum(least), budget)
    spent, cost, steps, free = np.zeros(1, int), np.zeros(1), [], budget - sum(least)
    for (name, size), floor in zip(sizes.items(), least, strict=True):  # bytes are counted above 2 bits
        more = [packed_bytes(size, bits) - floor for bits in WIDTHS]
        spent = np.add.outer(spent, more).ravel()
        cost = np.add.outer(cost, [costs[name][bits] for bits in WIDTHS]).ravel()
        order = np.lexsort((cost, spent))
        order = order[spent[order] <= free]
        before = np.minimum.accumulate(cost[order])
        steps.append(order[np.append(True, before[1:] < before[:-1])])
        spent, cost = spent[steps[-1]], cost[steps[-1]]
    found, place = dict[str, int](), -1
    for name, kept in zip(reversed(list(sizes)), reversed(steps), strict=True):
        place, width = divmod(int(kept[place]), len(WIDTHS))
        found[name] = WIDTHS[width]
    return {name: found[name] for name in sizes}


def operations(model: nn.Module, example: ExampleInput) -> pd.DataFrame:
    """Return what each layer costs in MACs, bits and bit operations, and the bytes of its weights, indexed by layer.

    A bit operation is a MAC times the bits of both factors (Wang et al. 2019, arXiv:1811.08886); float32 counts as 32.
    """
    table = profile(model, example).layers
    layers = model.layers() if isinstance(model, Quantized) else {}
    widths = {f"net.{name}": layer.weights.bits for name, layer in layers.items()}
    table.index = [
        name.removesuffix(".layer") if name.removesuffix(".layer") in widths else name for name in table.index
    ]
    made = table[["macs", "weight_bytes"]].groupby(level=0, sort=False).sum()
    made = made[made["macs"] > 0]
    made["weight_bits"] = [widths.get(name, FLOAT) for name in made.index]
    made["activation_bits"] = [8 if name in widths else FLOAT for name in made.index]
    made["bit_operations"] = made["macs"] * made["weight_bits"] * made["activation_bits"]
    return made
