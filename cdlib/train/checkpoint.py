"""Checkpoints of a training run: whole or absent on the disk, and refused by any run but the one that wrote them.

What goes into one, and when, is `cdlib.train`'s business.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdlib.data import Dataset
from cdlib.errors import CdlibError
from cdlib.files import atomic
from cdlib.text import digest, one_line
from cdlib.torch_state import bytes_of, tensors_of
from cdlib.train.recipe import Recipe

FORMAT = 1


def identity(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return what makes a run this run: recipe, seed, data, and the names, shapes and values it starts from."""
    held = ((f"{name} {t.dtype} {list(t.shape)}", bytes_of(t)) for name, t in tensors_of(model).items())
    return {
        "format": FORMAT,
        "seed": seed,
        "data": dataset.fingerprint,
        **{f"recipe.{name}": value for name, value in asdict(recipe).items()},
        "parameters": {name: list(p.shape) for name, p in model.named_parameters()},
        "initial weights": digest(chain.from_iterable(held))[:16],
    }


def prepare(path: Path) -> None:
    """Make the folder of a checkpoint, see that it can be written, and clear what a killed writer left in it.

    A CdlibError if the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{path.name}.*.tmp"):
            leftover.unlink()
        probe = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CdlibError(f"cannot write the checkpoint {path} ({error}); choose another folder.") from error


def save(path: Path, run: dict[str, Any], content: dict[str, Any]) -> None:
    """Write `content` as the checkpoint of the run with identity `run`, replacing the one before, all or nothing.

    A CdlibError if it cannot be written, for example because the disk is full; the checkpoint before stays.
    """
    try:
        with atomic(path) as file:
            torch.save({"run": run, **content}, file)
    except (OSError, RuntimeError) as error:
        raise CdlibError(
            f"cannot write the checkpoint {path} ({error}); make room or choose another folder."
        ) from error


def load(path: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a checkpoint of the run with identity `run`, on the CPU, or None if there is no file.

    A CdlibError if it is truncated, damaged, or of another run.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs = content.pop("run")
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CdlibError(f"the checkpoint {path} is damaged ({one_line(error)}); delete it to start anew.") from error
    for name in run:
        if theirs.get(name) != run[name]:
            raise CdlibError(
                f"the checkpoint {path} is of another run: {_difference(name, theirs.get(name), run[name])}; "
                "give this run another path, or delete the file to start anew."
            )
    return content


def _difference(name: str, there: Any, here: Any) -> str:
    if name == "initial weights":
        return "it started from other weights (is the seed set before the model is built?)"
    if name == "parameters" and isinstance(there, dict):
        odd = next(key for key in {**there, **here} if there.get(key) != here.get(key))
        return f"parameter {odd} is {there.get(odd, 'absent')} there and {here.get(odd, 'absent')} here"
    return f"{name} is {there!r} there and {here!r} here"
