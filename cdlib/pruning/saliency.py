"""Which units matter least: a score for every unit of a group, and the units with the lowest scores.

A score is taken over a unit's own slices (its PZIG: weight rows, biases, scale and shift), never over the columns of
the layers that read it. Only units of one group are compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdlib.data import Split, batches
from cdlib.errors import CdlibError, check_choice, check_share
from cdlib.grouping import Group
from cdlib.text import digest
from cdlib.torch_state import copied, device_of, mask_name, tensors_of
from cdlib.train import logits_of


def scores(model: nn.Module, group: Group, by: str = "l2", *, seed: int = 0) -> Tensor:
    """Return how much each unit of a group matters, by one of several measures.

    Parameters
    ----------
    model : nn.Module
        The network that the group is of.
    group : Group
        One of ``cdlib.find_groups(model, ...)``.
    by : str, default "l2"
        "l1": the sum of absolute values of all elements of the unit's own slices; masked ones count as zero. For a
        convolution alone this is the measure of Li et al. 2017 (arXiv:1608.08710, section 3.1); here biases, scales
        and shifts count too.
        "l2": the Euclidean norm of the same elements.
        "bn": the absolute value of the unit's batch-norm scale, Liu et al. 2017 (arXiv:1708.06519); summed where
        several batch norms act on the unit.
        "taylor": how much the loss would change, to first order, if the same elements were zero, ``|sum of w dL/dw|``
        (Molchanov et al. 2019, arXiv:1906.10771, equation 8, without the square). The network must hold gradients,
        as after ``loss.backward()`` or from `with_gradients`.
        "random": uniform in [0, 1).
    seed : int, default 0
        Of "random": the same seed gives a group of the same name and size the same numbers on every device.

    Returns
    -------
    Tensor [size]
        Non-negative, float32 (float64 for float64 weights), on the device of the weights.

    Raises
    ------
    CdlibError
        If the measure is unknown, the network is another one, its weights are not finite or have no values, the
        group has no batch norm, or the network has no gradients.
    """
    check_choice("saliency", by, MEASURES)
    return checked(MEASURES[by](model, group, seed), f"group {group.name!r}")


def lowest(
    model: nn.Module, groups: Iterable[Group], ratio: float, *, by: str = "l2", seed: int = 0
) -> dict[str, list[int]]:
    """Return the units with the lowest scores, the same share of every group: for `cdlib.remove`.

    They are by group, from the lowest score upwards, the first one first where scores are equal. Groups of which
    nothing is chosen are left out. A CdlibError if the ratio is out of range, or as `scores`.

    Parameters
    ----------
    model : nn.Module
        The network that the groups are of.
    groups : iterable of Group
        Groups to choose from; those that are not prunable are passed over.
    ratio : float
        The share to choose, from 0 to below 1: of each group floor(ratio * size) units, never all.
    by, seed
        As for `scores`.
    """
    check_share("ratio", ratio)
    drop: dict[str, list[int]] = {}
    for group in groups:
        count = min(group.size - 1, math.floor(ratio * group.size + 1e-9))  # 0.29 * 100 is a little less than 29
        if group.prunable and count > 0:
            order = torch.argsort(scores(model, group, by, seed=seed), stable=True)
            drop[group.name] = order[:count].tolist()
    return drop


def with_gradients(model: nn.Module, split: Split, *, batch_size: int = 250) -> nn.Module:
    """Return a copy of a network that holds the gradients of its mean loss over a split, for "taylor".

    A CdlibError if the split is empty or does not fit the network.

    Parameters
    ----------
    model : nn.Module
        Takes images [n, C, H, W], returns logits [n, classes]; the copy is in evaluation mode.
    split : Split
        Images and labels. A few hundred images will do.
    batch_size : int, default 250
        Images at a time.
    """
    if not len(split):
        raise CdlibError(f"{split.name} is empty, so there are no gradients on it.")
    copy = copied(model).eval()
    copy.zero_grad()
    with torch.enable_grad():
        for x, y in batches(split.to(device_of(copy)), batch_size):
            (F.cross_entropy(logits_of(copy, x).float(), y, reduction="sum") / len(split)).backward()
    return copy


def generator(seed: int, name: str) -> torch.Generator:
    """Return random numbers on the CPU that depend on a seed and a name, and on nothing drawn before."""
    return torch.Generator().manual_seed(int(digest([f"{seed} {name}"])[:14], 16))


def checked(found: Tensor, whose: str) -> Tensor:
    """Return numbers made of the weights of something; a CdlibError if they are not finite, or have no values."""
    if found.is_meta or not bool(found.isfinite().all()):
        what = "no values: use another device than meta" if found.is_meta else "values that are not finite numbers"
        raise CdlibError(f"the weights of {whose} have {what}.")
    return found


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor without its gradient, in float32 or wider."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _l1(model: nn.Module, group: Group, seed: int) -> Tensor:
    return _summed(model, group, group.own, lambda w: wide(w).abs())


def _l2(model: nn.Module, group: Group, seed: int) -> Tensor:
    return _summed(model, group, group.own, lambda w: wide(w).square()).sqrt()


def _taylor(model: nn.Module, group: Group, seed: int) -> Tensor:
    def change(weight: Tensor) -> Tensor:
        if weight.grad is None:
            raise CdlibError(
                f"group {group.name!r} has weights without gradients: call loss.backward() first, or with_gradients()."
            )
        return wide(weight) * wide(weight.grad)

    return _summed(model, group, group.own, change).abs()


def _bn(model: nn.Module, group: Group, seed: int) -> Tensor:
    norms = [path for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scales = {f"{path}.weight".lstrip(".") for path in norms}
    chosen = [key for key in group.own if key[0] in scales]
    if not chosen:
        raise CdlibError(f"group {group.name!r} has no batch norm to score it by: leave it out, or use 'l2'.")
    return _summed(model, group, chosen, lambda w: wide(w).abs())


def _random(model: nn.Module, group: Group, seed: int) -> Tensor:
    device = next((tensor.device for tensor in tensors_of(model).values()), None)
    return torch.rand(group.size, generator=generator(seed, group.name), device="cpu").to(device)


Measure = Callable[[nn.Module, Group, int], Tensor]
MEASURES: dict[str, Measure] = {"l1": _l1, "l2": _l2, "bn": _bn, "taylor": _taylor, "random": _random}
"""The measures by name: functions of network, group and seed."""


def _summed(
    model: nn.Module, group: Group, keys: Iterable[tuple[str, int]], function: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum a function of the elements of some slices for each unit: float32 or float64 [size].

    What is masked (by torch.nn.utils.prune) counts as zero, and the masks themselves do not count.
    """
    held = tensors_of(model)
    masks = {mask_name(name) for name in held}
    sums = []
    for name, dim in (key for key in keys if key[0] not in masks):
        of_unit, index = group.places[name, dim]
        tensor = held.get(name)
        if tensor is None or tensor.dim() <= dim or tensor.shape[dim] <= index.max():
            raise CdlibError(f"group {group.name!r} is of another network: this one has no such {name!r}.")
        mask = held.get(mask_name(name) or "")
        found = function(tensor) if mask is None else function(tensor) * mask
        per_index = found.movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)
        units, at = (torch.from_numpy(array).to(tensor.device) for array in (of_unit, index))
        sums.append(per_index.new_zeros(group.size).index_add_(0, units, per_index[at]))
    return torch.stack(sums).sum(0) if sums else torch.zeros(group.size)
