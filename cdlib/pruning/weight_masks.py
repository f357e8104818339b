"""The masks of `torch.nn.utils.prune` in a network: which weights have one, which can get one, putting on, taking off.

Which weights a mask sets to zero is decided in `unstructured_pruning` and `semi_structured`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune

from cdlib.errors import CdlibError
from cdlib.pruning.saliency import checked, wide

KINDS: dict[str, Any] = {"conv": nn.modules.conv._ConvNd, "linear": nn.Linear}


def masks_of(module: nn.Module) -> list[str]:
    """The names of a module's own parameters that have masks."""
    hooks = module._forward_pre_hooks.values()
    return [hook._tensor_name for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


def layers_of(model: nn.Module, called: Container[str] | None = None, *, trained: bool | None = None) -> dict[str, Any]:
    """The convolutions and linear layers of a network by name, without those that are known not to be called.

    A mask is applied when a layer is called. Known are the output projections of PyTorch's attention, whose weights are
    read; or, if `called` is given, all that it does not contain. With `trained`, only those whose weights are trained,
    or are not.
    """
    kinds = tuple(KINDS.values())
    found: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if trained is not None:
        found = {name: layer for name, layer in found.items() if layer.weight.requires_grad == trained}
    if called is None:
        return {name: layer for name, layer in found.items() if not isinstance(layer, NonDynamicallyQuantizableLinear)}
    return {name: layer for name, layer in found.items() if name in called}


def put_on(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Give those of a network's layers that have no mask of their weight one, in place, which masks nothing.

    A CdlibError if the weight of a layer is computed from other tensors, or is a parameter of another module too.
    """
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    for name, layer in layers.items():
        called = name or type(layer).__name__
        weight = layer._parameters.get("weight_orig" if "weight" in masks_of(layer) else "weight")
        if weight is None:
            raise CdlibError(
                f"the weight of {called} is computed: remove the parametrization or, in unstructured, leave the layer "
                "out (layers=)."
            )
        if uses[id(weight)] > 1:
            raise CdlibError(
                f"{called} shares its weight with another module, which a mask would part: give it a weight of its "
                "own or, in unstructured, leave it out (layers=)."
            )
    for layer in layers.values():
        if "weight" not in masks_of(layer):
            prune.identity(layer, "weight")


def put_on_like(model: nn.Module, names: Container[str]) -> None:
    """Give the parameters of a network masks, in place, so that its tensors have the names of a network with masks."""
    for name, _ in list(model.named_parameters(remove_duplicate=False)):
        if name not in names and f"{name}_mask" in names:
            path, _, own = name.rpartition(".")
            prune.identity(model.get_submodule(path), own)


def refresh(model: nn.Module) -> None:
    """Multiply parameters and masks anew, as the next call will do."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                hook(module, ())


def take_off(model: nn.Module) -> None:
    """Multiply the masks of a network in, in place, and remove them."""
    for module in model.modules():
        hooks = {k: h for k, h in module._forward_pre_hooks.items() if isinstance(h, prune.BasePruningMethod)}
        for key, hook in hooks.items():
            hook.remove(module)
            del module._forward_pre_hooks[key]
        if hooks and "bias" in module._parameters:  # what had a mask came to the end
            module._parameters["bias"] = module._parameters.pop("bias")


def magnitudes(name: str, layer: Any) -> Tensor:
    """Return the absolute values of a layer's weight that has a mask, in float32 or wider; masked ones count as others.

    A CdlibError if some are not finite, or have no values.
    """
    return checked(wide(layer.weight_orig), name or type(layer).__name__).abs()
