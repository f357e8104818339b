"""What a removal took out of a network, as values that JSON has.

`cdlib.surgery.cut` notes it on the network, `cdlib.serialization.network_files` keeps it and does it again. An input is
noted by the shapes and types of its tensors, not by their numbers: where it is needed again, it is zeros.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from statistics import mode
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.graph import Inputs
from cdlib.grouping import Ids, Key
from cdlib.torch_state import tensors_of

HISTORY = "_cdlib_removed"
"""The attribute of a cut network that says what was removed: a list of entries."""

Entry = dict[str, Any]
"""One removal, or several composed, see `note`."""


def note(
    model: nn.Module,
    inputs: Inputs,
    slices: Mapping[Key, Ids],
    rewritten: list[str],
    attributes: Mapping[str, Mapping[str, Any]],
) -> Entry:
    """Return what is kept of a removal from `model`, the network before, which it ran on `inputs`.

    A dict of ``slices`` (indices such as ``"0-3,7"``, and the ``"tensor:dimension"`` places from which they vanished),
    ``input``, ``kwargs`` if there are any, ``batch_dim``, ``rewritten`` (the modules that run recorded operators
    since), ``attributes`` (those of a user's modules that became others, by module) and ``types`` (the floating type of
    most tensors under ``""``, and the others by name).
    """
    alone, *rest = inputs.args or (None,)
    entry = {
        "slices": _places(slices),
        "input": to_json(alone if isinstance(alone, Tensor) and not rest else inputs.args),
        **({"kwargs": to_json(inputs.kwargs)} if inputs.kwargs else {}),
        "batch_dim": inputs.batch_dim,
        "rewritten": list(rewritten),
        "attributes": to_json({path: dict(values) for path, values in attributes.items() if values}),
        "types": _types(model),
    }
    names = set(tensors_of(model))
    masked = {name.removesuffix("_mask") for name in names if f"{name.removesuffix('_mask')}_orig" in names}
    return unmasked(entry, names - {f"{name}_{end}" for name in masked for end in ("orig", "mask")} | masked)


def add(model: nn.Module, entry: Entry) -> None:
    """Note a removal on a network from which it was done.

    Where neither it nor the one before rewrote code, they become one: what is gone in the end, by the indices of the
    network before both.
    """
    noted = list(getattr(model, HISTORY, ()))
    if noted and not noted[-1]["rewritten"] and not entry["rewritten"]:
        last = noted.pop()
        gone, changed = slices(last), from_json(last["attributes"])
        for key, ids in slices(entry).items():
            done = gone.get(key, ids[:0])
            gone[key] = np.union1d(done, np.setdiff1d(np.arange(ids.max() + 1 + done.size), done)[ids])
        for path, values in from_json(entry["attributes"]).items():
            changed[path] = {**changed.get(path, {}), **values}
        entry = {**entry, "slices": _places(gone), "attributes": to_json(changed)}
    setattr(model, HISTORY, [*noted, entry])


def slices(entry: Entry) -> dict[Key, Ids]:
    """Return the indices that vanished from each dimension of each tensor."""
    found: dict[Key, Ids] = {}
    for runs, places in entry["slices"].items():
        ends = [[int(end) for end in run.split("-")] for run in runs.split(",")]
        ids = np.concatenate([np.arange(run[0], run[-1] + 1) for run in ends])
        found |= {(place.rpartition(":")[0], int(place.rpartition(":")[2])): ids for place in places}
    return found


def unmasked(entry: Entry, held: Container[str]) -> Entry:
    """Return a removal as one from the network without masks, whose tensors have the names in `held`.

    A network with masks (`torch.nn.utils.prune`) has ``weight_orig`` and ``weight_mask`` in the place of ``weight``.
    """

    def plain(name: str) -> str:
        return name if name in held else name.removesuffix("_orig")

    def is_mask(name: str) -> bool:
        return name not in held and name.removesuffix("_mask") in held

    slices = {}
    for runs, places in entry["slices"].items():
        named = [place.rpartition(":") for place in places]
        slices[runs] = [f"{plain(name)}:{dim}" for name, _, dim in named if not is_mask(name)]
    types = {plain(name): kind for name, kind in entry["types"].items()}
    return {**entry, "slices": slices, "types": types}


def set_types(model: nn.Module, entry: Entry) -> None:
    """Give the floating tensors of a network, in place, the types that they had at a removal."""
    types = entry["types"]
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(_type(types.get(name, types[""])))


def to_json(tree: Any) -> Any:
    """Return nested tuples, lists and dictionaries of tensors and plain values as values that JSON has.

    What cannot be written down becomes ``{"other": name of its class}``, of which `from_json` makes nothing.
    """
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Tensor):
        return {"tensor": list(tree.shape), "type": str(tree.dtype).removeprefix("torch.")}
    if type(tree) is tuple:
        return {"tuple": [to_json(item) for item in tree]}
    if type(tree) is list:
        return [to_json(item) for item in tree]
    if type(tree) is dict:
        return {"dict": [[to_json(key), to_json(value)] for key, value in tree.items()]}
    return {"other": type(tree).__name__}


def from_json(value: Any, device: torch.device | str = "cpu") -> Any:
    """Return what `to_json` was given, with zeros for tensors; a CdlibError if some could not be written down."""
    if isinstance(value, list):
        return [from_json(item, device) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.zeros(value["tensor"], dtype=_type(value["type"]), device=device)
    if "tuple" in value:
        return tuple(from_json(item, device) for item in value["tuple"])
    if "dict" in value:
        return {from_json(key): from_json(item, device) for key, item in value["dict"]}
    raise CdlibError(
        f"a {value['other']!r} cannot be made again: use tensors, numbers and texts, also in tuples or lists."
    )


def is_complete(value: Any) -> bool:
    """Whether `from_json` can make what stood for a value given to `to_json`."""
    if isinstance(value, list):
        return all(is_complete(item) for item in value)
    return not isinstance(value, dict) or ("other" not in value and is_complete(list(value.values())))


def _places(slices: Mapping[Key, Ids]) -> dict[str, list[str]]:
    """The places from which indices vanish, by these indices as text."""
    places: dict[str, list[str]] = {}
    for (name, dim), ids in slices.items():
        places.setdefault(_runs(ids), []).append(f"{name}:{dim}")
    return places


def _runs(ids: Ids) -> str:
    """Increasing indices as text, ``"0-3,7"``."""
    ends = np.flatnonzero(np.diff(ids) != 1)
    starts, stops = ids[np.r_[0, ends + 1]].tolist(), ids[np.r_[ends, len(ids) - 1]].tolist()
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def _types(model: nn.Module) -> dict[str, str]:
    floats = {name: tensor for name, tensor in tensors_of(model).items() if tensor.is_floating_point()}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in floats.items()}
    most = mode(list(types.values()) or ["float32"])
    return {"": most, **{name: kind for name, kind in types.items() if kind != most}}


def _type(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CdlibError(f"{name!r} is no type of a tensor in this version of torch.")
    return found
