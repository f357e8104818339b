"""Weight sharing: a layer's weights take a few values, which stand in a codebook and are trained together."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from cdlib.errors import CdlibError, check_whole, unknown
from cdlib.quantization.folding import LAYERS
from cdlib.quantization.placing import Quantized, check_plain
from cdlib.torch_state import check_module, check_numbers, copied

ROUNDS = 100
"""The most rounds of k-means; it ends before, when no weight changes its value."""


class Codebook(nn.Module):
    """A parametrization: a weight is the value at its index, so that its gradient is added to that value's.

    Attributes
    ----------
    index : Tensor, uint8
        Of the weight's shape: 0 for zero, which stays zero, and k for the k-th value.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, values: Tensor) -> Tensor:
        """Return the weights for values [k]."""
        return torch.cat([values.new_zeros(1), values])[self.index.long()]


def share(model: nn.Module, bits: int = 4, *, keep: Collection[str] = ()) -> nn.Module:
    """Return a network whose layers have at most 2^bits different weights each, zero among them if there are zeros.

    Values are found by k-means in one dimension, started from values at equal distances between the least and the
    largest weight ("linear initialisation"), and are parameters: training moves each by the sum of its weights'
    gradients. Weights that are zero, such as pruning leaves, stay so (Deep Compression, Han et al. 2016,
    arXiv:1510.00149, section 3).

    Parameters
    ----------
    model : nn.Module
        A float network; masks are to be made permanent before.
    bits : int, default 4
        Of an index, 1 to 8.
    keep : collection of str
        Names of convolutions and linear layers that keep their own weights, such as one with filters of unlike size.

    Raises
    ------
    CdlibError
        For bits out of range, an unknown layer, and layers that share values or are masked already.
    """
    check_whole("bits", bits, 1, 8)
    check_numbers(check_module(model))
    if isinstance(model, Quantized):
        raise CdlibError("the network is quantized already: share the weights of the float network.")
    check_plain(model)
    network = copied(model)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    for name in keep:
        if name not in layers:
            raise unknown("layer", name, layers)
    for name, layer in layers.items():
        if name in keep:
            continue
        weight = layer.weight.detach()
        values, index = clustered(weight, 2**bits - 1 if (weight == 0).any() else 2**bits)
        attach(layer, values.to(weight), index, layer.weight.requires_grad)
    return network


def clustered(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return at most `count` values, float64 and in rising order, and the index of each weight's (0 for zero), uint8.

    Lloyd's algorithm; values that no weight is nearest to are left out.
    """
    numbers = weight.detach().flatten().double()
    used = numbers[numbers != 0]
    if not len(used):
        return used, torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    values = torch.linspace(float(used.amin()), float(used.amax()), min(count, 255), dtype=torch.float64).to(used)
    nearest = torch.full_like(used, -1, dtype=torch.int64)
    for _ in range(ROUNDS):
        found = torch.bucketize(used, (values[1:] + values[:-1]) / 2)
        if torch.equal(found, nearest):
            break
        nearest = found
        counts = torch.bincount(nearest, minlength=len(values))
        sums = torch.zeros_like(values).index_add_(0, nearest, used)
        values = (sums / counts)[counts > 0]
    nearest = torch.bucketize(used, (values[1:] + values[:-1]) / 2)
    index = torch.zeros(len(numbers), dtype=torch.uint8, device=weight.device)
    index[numbers != 0] = (nearest + 1).to(torch.uint8)
    return values, index.view(weight.shape)


def attach(layer: nn.Module, values: Tensor, index: Tensor, trained: bool = True) -> None:
    """Make the weights of a layer those of a codebook, in place."""
    layer.register_parameter("weight", nn.Parameter(values, requires_grad=trained))
    register_parametrization(layer, "weight", Codebook(index), unsafe=True)


def codebooks(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the values [k] and the indices, 0 for zero, of each layer of a network that shares weights, by name."""
    found = {}
    for name, module in model.named_modules():
        if is_parametrized(module, "weight") and isinstance(book := module.parametrizations.weight[0], Codebook):
            found[name] = (module.parametrizations.weight.original.detach(), book.index)
    return found
