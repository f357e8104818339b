"""Cut units out of a network, or set them to zero; cut them out of another copy again.

`remove` cuts the slices of the units out of a copy of the network and then *runs* the copy, comparing every operator
with what the labels predict. Where the Python code of a module does not follow (it asserts the old width, or computes a
scale from the new one), that module is replaced by a `cdlib.surgery.rewriting.module.Rewritten`, which runs the
recorded operators. So a network comes out that computes what it should, or an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import run
from cdlib.grouping import Drop, Group, Groups, Ids, Key, check_batch, check_groups, find_again, find_groups
from cdlib.surgery import history
from cdlib.surgery.attributes import Guesses, adjust, own_tensors
from cdlib.surgery.prediction import Prediction, first_difference, gone
from cdlib.surgery.rewriting.module import Rewritten
from cdlib.surgery.rewriting.rewriter import Rewriter
from cdlib.torch_state import copied, device_of, tensors_of


def remove(model: nn.Module, groups: Groups, drop: Drop, *, round_to: int = 1) -> nn.Module:
    """Return a smaller network without some units; the network itself is not touched.

    The result has the same modules under the same names, with smaller tensors and with attributes that agree, on the
    same device, in the same mode. It trains, prints, exports and can be pruned again. A module whose Python code cannot
    follow the new widths becomes a `Rewritten` one, for inputs of the example's size; `rewritten` lists them.

    Parameters
    ----------
    model : nn.Module
        The network that the groups are of; a copy of it, or one that was trained since, will do.
    groups : Groups
        What `cdlib.find_groups` returned for it.
    drop : dict from str to iterable of int
        The units to remove, by the name of their group.
    round_to : int, default 1
        Keep more units than asked, so that what is left of a group is a multiple of this (or the whole group): those
        named last stay.

    Raises
    ------
    CdlibError
        If the groups are of another network, a group is unknown, not prunable or would vanish, a unit does not exist,
        the network cannot be copied, or the result cannot be made to compute what it should.
    """
    check_groups(groups, model)
    return cut(model, groups, slices_of(groups, drop, round_to))


def zero(model: nn.Module, groups: Groups, drop: Drop) -> nn.Module:
    """Return a copy of a network with the own slices of some units (their PZIGs) set to zero.

    Rows of weights, biases, scales and shifts become zero; the columns of the layers that read them stay as they are.
    For units of zero-invariant groups, the copy computes what `remove` of the same units does. Parameters and errors
    are those of `remove`.
    """
    check_groups(groups, model)
    zeroed = copied(model)
    set_to_zero(zeroed, groups, groups.check(drop), lambda group: group.own)
    return zeroed


def set_to_zero(
    model: nn.Module, groups: Groups, drop: Mapping[str, list[int]], keys: Callable[[Group], Iterable[Key]]
) -> None:
    """Set the slices of some units to zero, in place: those in the tensors and dimensions that `keys` gives."""
    held = tensors_of(model)
    with torch.no_grad():
        for name, units in drop.items():
            for tensor, dim in keys(groups[name]):
                index = torch.from_numpy(groups[name].indices(units, (tensor, dim)))
                held[tensor].index_fill_(dim, index.to(held[tensor].device), 0)


def slices_of(groups: Groups, drop: Drop, round_to: int = 1) -> dict[Key, Ids]:
    """Return, for each tensor and dimension, the indices that vanish with some units. Errors are those of `remove`."""
    found: dict[Key, list[Ids]] = {}
    for name, units in groups.check(drop, round_to).items():
        for key in groups[name].tensors:
            found.setdefault(key, []).append(groups[name].indices(units, key))
    return {key: np.unique(np.concatenate(parts)) for key, parts in found.items() if sum(map(len, parts))}


def cut(model: nn.Module, groups: Groups, slices: Mapping[Key, Ids], *, draft: bool = False) -> nn.Module:
    """Return a copy of a network without some slices, of which it is made sure that it computes what it should.

    `slices` gives the indices that vanish from each dimension of each tensor, as `slices_of` returns them. A `draft` is
    only to be counted: it is right in inference, and without the code that rewritten modules need for training and for
    other precisions. A CdlibError if what is left does not fit together.
    """
    small = copied(model)
    if not slices:
        return small
    if any(op.name == "_local_scalar_dense" for op in groups.graph.ops):
        groups = find_again(model, groups)  # numbers of weights that went into the code may be others by now
    inputs, walk = groups.inputs_for(model), groups.walk
    check_batch(model, walk.graph, inputs.repeated(2))
    shrink(small, slices)
    guesses = Guesses(small)
    rewriter = Rewriter(model, inputs, slices, walk.training)
    prediction = Prediction(walk, gone(walk, slices))
    args = inputs.repeated(1)
    while True:
        after, error = run(small, args, on_meta=walk.graph.on_meta)
        wrong = first_difference(prediction, after)
        if wrong is None and error is None:
            wrong = next(((name, None) for name in guesses.made if not rewriter.trains_alike(small, name)), None)
            if wrong is None:
                break
        module, op = wrong or ("", None)
        if guesses.make(module, op, prediction):
            continue
        guesses.undo(module)
        small = rewriter.rewrite(small, module, error)
        prediction, args = rewriter.prediction, rewriter.args
    if not draft:
        rewriter.finish(small)
    history.add(small, history.note(model, inputs, slices, rewritten(small), guesses.made))
    return small


def shrink(model: nn.Module, slices: Mapping[Key, Ids]) -> None:
    """Cut slices out of the tensors of a network in place, and make the attributes of PyTorch's layers agree."""
    held = tensors_of(model)
    for (name, dim), ids in slices.items():
        tensor = held[name]
        stays = np.setdiff1d(np.arange(tensor.shape[dim]), ids)
        data = tensor.detach().index_select(dim, torch.from_numpy(stays).to(tensor.device))
        last = data.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        last = last and not tensor.is_contiguous()
        tensor.data = data.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        tensor.grad = None
    changed = {id(held[name]) for name, _ in slices}
    for module in model.modules():
        own = own_tensors(module).items()
        if sizes := {name: tuple(tensor.shape) for name, tensor in own if id(tensor) in changed}:
            adjust(module, sizes)


def rewritten(model: nn.Module) -> list[str]:
    """The names of the modules of a network whose Python code was replaced by recorded operators."""
    return [name for name, module in model.named_modules() if isinstance(module, Rewritten)]


def replay(model: nn.Module, entry: history.Entry) -> nn.Module:
    """Return a network without masks as it is after a removal: itself, cut in place, or a new one if code is rewritten.

    When it was first done, what the cut network computes was compared with the prediction. So the slices are enough,
    unless modules were rewritten: those are recorded again, which takes a run of the network. A CdlibError if it lacks
    what was removed, or other modules have to be rewritten than were.
    """
    held = tensors_of(model)
    entry = history.unmasked(entry, held)
    slices = history.slices(entry)
    if not entry["rewritten"]:
        for (name, dim), ids in slices.items():
            if name not in held or not 0 <= dim < held[name].dim():
                raise CdlibError(f"it has no dimension {dim} of {name!r}.")
            if ids.size and not (ids.min() >= 0 and ids.max() < held[name].shape[dim]):
                raise CdlibError(f"{name!r} has no index {ids.max()} in dimension {dim}.")
        shrink(model, slices)
        for path, values in history.from_json(entry["attributes"]).items():
            vars(model.get_submodule(path)).update(values)
        history.add(model, entry)
        return model
    history.set_types(model, entry)
    example, kwargs = (history.from_json(entry.get(key), device_of(model)) for key in ("input", "kwargs"))
    small = cut(model, find_groups(model, example, kwargs=kwargs, batch_dim=entry["batch_dim"]), slices)
    outer = tuple(f"{name}." if name else "" for name in entry["rewritten"])
    if more := [name for name in rewritten(small) if not f"{name}.".startswith(outer)]:
        raise CdlibError(
            f"{', '.join(more) or 'all'} has to be rewritten here, and it was {', '.join(entry['rewritten'])}"
        )
    return small
