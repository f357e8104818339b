"""Make the attributes of modules say what their tensors have become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from cdlib.graph import Op, leaves
from cdlib.grouping import arguments
from cdlib.surgery.prediction import Prediction

Sizes = Mapping[str, tuple[int, ...]]
"""The shapes of the tensors of a module that were cut, by their names in it."""


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
        The shapes of those that were cut.
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
        module.num_features = next(shape[0] for shape in sizes.values())
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = next(iter(sizes.values()))
    elif isinstance(module, nn.GroupNorm):
        each = module.num_groups == module.num_channels
        module.num_channels = next(shape[0] for shape in sizes.values())
        module.num_groups = module.num_channels if each else module.num_groups
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        module.input_size = int(next(shape[1] for name, shape in sizes.items() if name.startswith("weight_ih")))


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
    """Numbers that modules other than PyTorch's layers seem to keep about widths; changed only where needed.

    A number, or one in a tuple, that is also an argument of the operator that a module does not run as it should (or a
    size of what that reads or makes) may have to become what it is in the prediction; but it may also be something
    else. `make` tries it, and `undo` takes it back where that did not help. `made` says what was changed, by module.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tried: set[tuple[str, str]] = set()
        self._old: dict[str, dict[str, Any]] = {}
        self.made: dict[str, dict[str, Any]] = {}

    def make(self, name: str, op: Op | None, prediction: Prediction) -> bool:
        """Change the numbers of a module, and of the others of its class; return whether any changed there."""
        if op is None or op.module != name:
            return False
        kind = type(self._model.get_submodule(name))
        ops: dict[str, list[Op]] = {path: [] for path, m in self._model.named_modules() if type(m) is kind}
        for each in prediction.graph.ops:
            if each.module in ops:
                ops[each.module].append(each)
        place = ops[name].index(op)
        changed = False
        for path in sorted(ops, key=name.__ne__):
            if place < len(ops[path]) and ops[path][place].target is op.target:
                changed |= self._change(path, _new_numbers(ops[path][place], prediction)) and path == name
            if not changed:
                break
        return changed

    def _change(self, path: str, new: Mapping[int, int]) -> bool:
        module = self._model.get_submodule(path)
        found = {key: n for key, n in _numbers(module, new).items() if (path, key) not in self._tried}
        if not found or isinstance(module, _KNOWN):  # PyTorch's layers were adjusted to their tensors already
            return False
        self._tried |= {(path, key) for key in found}
        self._old.setdefault(path, {}).update({key: getattr(module, key) for key in found})
        self.made.setdefault(path, {}).update(found)
        vars(module).update(found)
        return True

    def undo(self, name: str) -> None:
        """Put the numbers of a module back."""
        if name in self._old:
            vars(self._model.get_submodule(name)).update(self._old.pop(name))
            del self.made[name]


def _new_numbers(op: Op, prediction: Prediction) -> dict[int, int]:
    """What the numbers of an operator become, if each becomes one thing: its arguments, else sizes of its tensors."""
    before, after = arguments(op), prediction.arguments(op)
    given = [(before[name], after.get(name)) for name in before]
    sizes = [(value.shape, prediction.shape(value)) for value in (*op.inputs, *op.outputs)]
    found: dict[int, int] = {}
    for changes in (given, sizes):
        both = [pair for one, other in changes for pair in zip(leaves(one), leaves(other), strict=False)]
        pairs = {(a, b) for a, b in both if type(a) is type(b) is int and a != b}
        found = {a: b for a, b in pairs if sum(a == other for other, _ in pairs) == 1} | found
    return found


def _numbers(module: nn.Module, new: Mapping[int, int]) -> dict[str, Any]:
    """The attributes of a module that hold numbers which become others, with what they become."""
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int) and value in new:
            found[name] = new[value]
        elif type(value) in (tuple, torch.Size) and any(isinstance(n, int) and n in new for n in value):
            found[name] = type(value)(new.get(n, n) for n in value)
    return found
