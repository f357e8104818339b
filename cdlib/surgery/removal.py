"""Cut units out of a network, or set them to zero.

`remove` cuts the slices of the units out of a copy of the network and then *runs* the copy, comparing every operator
with what the labels predict. Where the Python code of a module does not follow (it asserts the old width, or computes a
scale from the new one), that module is replaced by a `cdlib.surgery.rewriting.program.Rewritten`, which runs the
recorded operators. So a network comes out that computes what it should, or an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError, check_whole
from cdlib.graph.tracing import ExampleInput, one_sample, repeated, run
from cdlib.grouping import Drop, Groups, Ids, Key, Walk, check_batch, find_groups
from cdlib.surgery.attributes import Guesses, adjust, own_tensors
from cdlib.surgery.history import note
from cdlib.surgery.prediction import Prediction, first_difference, gone
from cdlib.surgery.rewriting.rewriter import Rewriter
from cdlib.text import one_line
from cdlib.torch_state import tensors_of

HISTORY = "_cdlib_removed"
"""The attribute of a cut network that says what was removed: a dictionary per removal, see `cdlib.surgery.history`."""


def remove(
    model: nn.Module, example_input: ExampleInput, drop: Drop, *, round_to: int = 1, batch_dim: int | None = 0
) -> nn.Module:
    """Return a smaller network without some units; the network itself is not touched.

    The result has the same modules under the same names, with smaller tensors and with attributes that agree, on the
    same device, in the same mode. It trains, prints, exports and can be pruned again. A module whose Python code cannot
    follow the new widths becomes a `Rewritten` one, for inputs of the example's size; `rewritten` lists them.

    Parameters
    ----------
    model : nn.Module
        Any network that runs.
    example_input : tensor or tuple
        What the network is called with, for example one sample of zeros [1, 3, 32, 32].
    drop : dict from str to iterable of int
        The units to remove, by the name of their group in ``find_groups(model, example_input)``.
    round_to : int, default 1
        Keep more units than asked, so that what is left of a group is a multiple of this (or the whole group): those
        named last stay.
    batch_dim : int or None, default 0
        The dimension of the input that counts samples; None if there is none.

    Returns
    -------
    nn.Module

    Raises
    ------
    CdlibError
        If a group is unknown, not prunable or would vanish, a unit does not exist, the network cannot be captured or
        copied, or the result cannot be made to compute what it should.
    """
    groups = find_groups(model, example_input, batch_dim=batch_dim)
    return cut(model, example_input, groups.walk, slices_of(groups, drop, round_to), batch_dim)


def zero(model: nn.Module, example_input: ExampleInput, drop: Drop, *, batch_dim: int | None = 0) -> nn.Module:
    """Return a copy of a network with the own slices of some units (their PZIGs) set to zero.

    Rows of weights, biases, scales and shifts become zero; the columns of the layers that read them stay as they are.
    For units of zero-invariant groups, the copy computes what `remove` of the same units does.

    Parameters
    ----------
    model, example_input, drop, batch_dim
        As for `remove`.

    Returns
    -------
    nn.Module

    Raises
    ------
    CdlibError
        As `remove`.
    """
    groups = find_groups(model, example_input, batch_dim=batch_dim)
    chosen = groups.check(drop)
    zeroed = copied(model)
    held = tensors_of(zeroed)
    with torch.no_grad():
        for name, units in chosen.items():
            for key in groups[name].own:
                index = torch.from_numpy(groups[name].indices(units, key)).to(held[key[0]].device)
                held[key[0]].index_fill_(key[1], index, 0)
    return zeroed


def slices_of(groups: Groups, drop: Drop, round_to: int = 1) -> dict[Key, Ids]:
    """Return, for each tensor and dimension, the indices that vanish with some units.

    Raises
    ------
    CdlibError
        As `remove`.
    """
    check_whole("round_to", round_to, 1)
    found: dict[Key, list[Ids]] = {}
    for name, units in groups.check(drop).items():
        group = groups[name]
        stay = min(group.size, -(-(group.size - len(units)) // round_to) * round_to)
        for key in group.tensors:
            found.setdefault(key, []).append(group.indices(units[: group.size - stay], key))
    return {key: np.unique(np.concatenate(parts)) for key, parts in found.items() if sum(map(len, parts))}


def cut(
    model: nn.Module, example_input: ExampleInput, walk: Walk, slices: Mapping[Key, Ids], batch_dim: int | None = 0
) -> nn.Module:
    """Return a copy of a network without some slices, of which it is made sure that it computes what it should.

    `slices` gives the indices that vanish from each dimension of each tensor, as `slices_of` returns them; `walk` is
    that of the network.

    Raises
    ------
    CdlibError
        If what is left does not fit together.
    """
    small = copied(model)
    if not slices:
        return small
    check_batch(model, walk.graph, repeated(example_input, batch_dim, 2))
    shrink(small, slices)
    guesses = Guesses(small)
    rewriter = Rewriter(model, example_input, slices, batch_dim, walk.training)
    prediction = Prediction(walk, gone(walk, slices))
    args = one_sample(example_input, batch_dim)
    while True:
        after, error = run(small, args, on_meta=walk.graph.on_meta)
        wrong = first_difference(prediction, after)
        if wrong is None and error is None:
            break
        module, op = wrong or ("", None)
        if guesses.make(module, op, prediction):
            continue
        guesses.undo(module)
        small = rewriter.rewrite(small, module, error)
        prediction, args = rewriter.prediction, rewriter.args
    done = note(model, example_input, slices, batch_dim, rewritten(small), guesses.made)
    setattr(small, HISTORY, [*getattr(model, HISTORY, []), done])
    return small


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a network; weights that its hooks compute (masks, weight norm) are detached in it.

    Raises
    ------
    CdlibError
        If it cannot be copied.
    """
    computed = [
        t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor) and not t.is_leaf
    ]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    except Exception as error:
        raise CdlibError(f"{type(model).__name__} cannot be copied ({one_line(error)}).") from error


def shrink(model: nn.Module, slices: Mapping[Key, Ids]) -> None:
    """Cut slices out of the tensors of a network in place, and make the attributes of PyTorch's layers agree."""
    held, shapes = tensors_of(model), dict[int, tuple[int, ...]]()
    by_tensor: dict[str, dict[int, Ids]] = {}
    for (name, dim), ids in slices.items():
        by_tensor.setdefault(name, {})[dim] = ids
    for name, dims in by_tensor.items():
        tensor = held[name]
        data = tensor.detach()
        for dim, ids in dims.items():
            stays = np.setdiff1d(np.arange(data.shape[dim]), ids)
            data = data.index_select(dim, torch.from_numpy(stays).to(data.device))
        last = data.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        last = last and not tensor.is_contiguous()
        tensor.data = data.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        tensor.grad = None
        shapes[id(tensor)] = tuple(data.shape)
    for module in model.modules():
        own = own_tensors(module)
        sizes = {name: shapes[id(tensor)] for name, tensor in own.items() if id(tensor) in shapes}
        if sizes:
            adjust(module, sizes)


def rewritten(model: nn.Module) -> list[str]:
    """The names of the modules of a network whose Python code was replaced by recorded operators."""
    from cdlib.surgery.rewriting.program import Rewritten

    return [name for name, module in model.named_modules() if isinstance(module, Rewritten)]
