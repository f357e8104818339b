"""Make the attributes of modules say what their tensors have become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

Sizes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""The tensors of a module that were cut, by their names in it: shape before and after."""


def adjust(module: nn.Module, sizes: Sizes) -> None:
    """Set the numbers a module keeps about its own tensors: channels, features, groups, normalized shape.

    For PyTorch's layers they follow from the tensors' shapes. For other modules, a number (or the last ones of a tuple)
    that is the size of a dimension that was cut, and of no other, becomes its new size.

    Parameters
    ----------
    module : nn.Module
        Changed in place; its tensors are cut already.
    sizes : dict
        The shapes of those that were cut, before and after.
    """
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        _convolution(module, weight.shape)
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = next(after[0] for _, after in sizes.values())
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = next(after for _, after in sizes.values())
    elif isinstance(module, nn.GroupNorm):
        each = module.num_groups == module.num_channels
        module.num_channels = next(after[0] for _, after in sizes.values())
        module.num_groups = module.num_channels if each else module.num_groups
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    else:
        _guess(module, sizes)


def _convolution(module: nn.modules.conv._ConvNd, shape: Any) -> None:
    first, second = int(shape[0]), int(shape[1])
    if module.transposed:
        if module.groups == module.in_channels and module.groups > 1:
            module.groups = first
        module.in_channels, module.out_channels = first, second * module.groups
        return
    if module.groups == module.in_channels and module.groups > 1:
        module.groups = first // (module.out_channels // module.groups)
    module.out_channels, module.in_channels = first, second * module.groups


def _guess(module: nn.Module, sizes: Sizes) -> None:
    pairs = {(b, a) for before, after in sizes.values() for b, a in zip(before, after, strict=True)}
    new = {b: a for b, a in pairs if sum(b == other for other, _ in pairs) == 1 and a != b}
    for name, value in list(vars(module).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value in new and not name.startswith("_"):
            setattr(module, name, new[value])
        elif isinstance(value, tuple) and value and all(isinstance(n, int) for n in value):
            setattr(module, name, type(value)([new.get(n, n) for n in value]) if type(value) is tuple else value)
