"""Make the attributes of modules say what their tensors have become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

Sizes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""The tensors of a module that were cut, by their names in it: shape before and after."""


_KNOWN = (
    *(nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm),
    *(nn.GroupNorm, nn.PReLU, nn.Embedding, nn.RNNBase),
)


def adjust(module: nn.Module, sizes: Sizes) -> None:
    """Set the numbers one of PyTorch's layers keeps about its tensors: channels, features, groups, normalized shape.

    Parameters
    ----------
    module : nn.Module
        Changed in place; its tensors are cut already. Other modules are left alone, see `Guesses`.
    sizes : dict
        The shapes of those that were cut, before and after.
    """
    _compute_again(module)
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
    elif isinstance(module, nn.RNNBase):
        module.input_size = int(next(after[1] for name, (_, after) in sizes.items() if name.startswith("weight_ih")))


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself, those from which a parametrisation makes a weight included."""
    own = {**module._parameters, **module._buffers}
    if parametrize.is_parametrized(module):
        own |= dict(module.parametrizations.named_parameters())  # type: ignore[union-attr]
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _compute_again(module: nn.Module) -> None:
    """Have weights that hooks compute before a forward (masks, weight norm) computed from what was cut."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod | WeightNorm):
            hook(module, None)


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


class Guesses:
    """Numbers that modules other than PyTorch's layers seem to keep about their tensors; changed only where needed.

    A number, or one in a tuple, that is the size of a dimension that was cut, and of no other, may have to become its
    new size; but it may also be something else. `make` tries it for a module that does not run as it should, and
    `undo` takes it back where that did not help. `made` says what was changed, by module.
    """

    def __init__(self, model: nn.Module, shapes: Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        self._model = model
        self._new: dict[str, dict[str, Any]] = {}
        self._old: dict[str, dict[str, Any]] = {}
        self.made: dict[str, dict[str, Any]] = {}
        for path, module in model.named_modules():
            own = own_tensors(module).values()
            pairs = {pair for t in own if id(t) in shapes for pair in zip(*shapes[id(t)], strict=True)}
            if pairs and not isinstance(module, _KNOWN):
                pairs |= {(size, size) for t in own if id(t) not in shapes for size in t.shape}
                self._new[path] = _numbers(module, pairs)

    def make(self, name: str) -> bool:
        """Change the numbers of a module, and of the others of its class; return whether any changed."""
        kind = type(self._model.get_submodule(name))
        alike = [path for path in self._new if type(self._model.get_submodule(path)) is kind]
        if name not in alike:
            return False
        changed = False
        for path in alike:
            module, new = self._model.get_submodule(path), self._new.pop(path)
            self._old[path] = {key: getattr(module, key) for key in new}
            self.made[path] = new
            changed |= bool(new)
            vars(module).update(new)
        return changed

    def undo(self, name: str) -> None:
        """Put the numbers of a module back."""
        if name in self._old:
            vars(self._model.get_submodule(name)).update(self._old.pop(name))
            del self.made[name]


def _numbers(module: nn.Module, pairs: set[tuple[int, int]]) -> dict[str, Any]:
    """The attributes of a module that hold sizes that were cut, with the sizes after it."""
    new = {b: a for b, a in pairs if sum(b == other for other, _ in pairs) == 1 and a != b}
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int) and value in new:
            found[name] = new[value]
        elif type(value) in (tuple, torch.Size) and any(isinstance(n, int) and n in new for n in value):
            found[name] = type(value)(new.get(n, n) for n in value)
    return found
