"""A removal done again on a network, from what `cdlib.surgery.history` noted of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cdlib.errors import CdlibError
from cdlib.grouping import Ids, Key, find_groups
from cdlib.surgery import history
from cdlib.surgery.removal import cut, rewritten, shrink
from cdlib.torch_state import device_of, tensors_of


def replay(model: nn.Module, entry: history.Entry) -> nn.Module:
    """Return a network without masks as it is after a removal: itself, cut in place, or a new one if code is rewritten.

    When it was first done, what the cut network computes was compared with the prediction. So the slices are enough,
    unless modules were rewritten: those are recorded again, which takes a run of the network. A CdlibError if it lacks
    what was removed, or other modules have to be rewritten than were.
    """
    entry = history.unmasked(entry, tensors_of(model))
    slices = history.slices(entry)
    if not entry["rewritten"]:
        _check(model, slices)
        shrink(model, slices)
        history.set_attributes(model, entry)
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


def _check(model: nn.Module, slices: Mapping[Key, Ids]) -> None:
    held = tensors_of(model)
    for (name, dim), ids in slices.items():
        if name not in held or not 0 <= dim < held[name].dim():
            raise CdlibError(f"it has no dimension {dim} of {name!r}.")
        if ids.size and not (ids.min() >= 0 and ids.max() < held[name].shape[dim]):
            raise CdlibError(f"{name!r} has no index {ids.max()} in dimension {dim}.")
