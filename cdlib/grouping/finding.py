"""Find the groups of a network: capture it, carry labels through it, and sort them into units and groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from cdlib.errors import CdlibError, unknown
from cdlib.graph import ExampleInput, Inputs, capture
from cdlib.grouping.assembly import assemble
from cdlib.grouping.groups import Groups
from cdlib.grouping.preconditions import check, check_course, training_run
from cdlib.grouping.reshape_choices import choose_reshapes
from cdlib.torch_state import tensors_of


def find_groups(
    model: nn.Module,
    example_input: ExampleInput,
    *,
    kwargs: Mapping[str, Any] | None = None,
    keep: Iterable[str] = (),
    batch_dim: int | None = 0,
) -> Groups:
    """Find which slices of a network's parameters and buffers can only be removed together.

    Parameters
    ----------
    model : nn.Module
        Any network that runs. It is run once, in evaluation mode, with its hooks, in its own precision (whatever
        `torch.autocast` is around the call), and left as it was found.
    example_input : tensor or tuple
        What the network is called with: a tensor, or a tuple of its positional arguments.
    kwargs : dict, optional
        Its arguments by name.
    keep : iterable of str, optional
        Modules, parameters or buffers, by name, of which nothing may be removed.
    batch_dim : int or None, default 0
        The dimension of the input that counts samples; None if there is none.

    Returns
    -------
    Groups
        In the order of the run; empty only for a network without layers.

    Raises
    ------
    CdlibError
        If the network cannot be captured, is quantised or compiled, is on another device than the input, or has
        nothing called as in `keep`.
    """
    if isinstance(keep, str) or not isinstance(keep, Iterable):
        raise CdlibError(f"keep={keep!r}: give a list of names, for example [{str(keep)!r}], or ().")
    check(model, (example_input, kwargs))
    inputs, kept = Inputs.of(example_input, kwargs, batch_dim), _kept(model, keep := list(keep))
    graph = capture(model, inputs.args, kwargs=inputs.kwargs, batch_dim=batch_dim)
    check_course(graph)
    done = choose_reshapes(graph, training_run(model, graph, inputs))
    return Groups(assemble(done, kept), model, done, inputs, keep)


def find_again(model: nn.Module, groups: Groups, inputs: Inputs | None = None) -> Groups:
    """Find the groups of a network with the example, or another one, and the options with which some were found.

    Raises
    ------
    CdlibError
        As `find_groups`.
    """
    inputs = inputs or groups.inputs_for(model)
    return find_groups(model, inputs.args, kwargs=inputs.kwargs, keep=groups.keep, batch_dim=inputs.batch_dim)


def _kept(model: nn.Module, keep: Iterable[str]) -> dict[str, str]:
    """The tensors of which nothing may be removed, to the name that the user gave."""
    tensors = list(tensors_of(model))
    modules = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for name in keep:
        inside = [tensor for tensor in tensors if tensor == name or tensor.startswith(f"{name}.")]
        if name not in modules and not inside:
            raise unknown("module or parameter in keep:", name, [*modules, *tensors])
        found |= dict.fromkeys(inside, name)
    return found
