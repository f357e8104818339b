"""The file format of `cdlib.save`: safetensors, with a description in JSON and a digest of everything.

Tensors that mean nothing without the library, such as integers of few bits, can lie in one stream: the table of their
names is then part of the description, and deflated with it. It takes a sixth of the bytes of safetensors' own table,
which is a quarter of the file of a small network whose weights are coded.

What the description says, and what is made of it, is the business of `cdlib.serialization.network_files`.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdlib.errors import CdlibError
from cdlib.files import atomic
from cdlib.text import digest, one_line
from cdlib.torch_state import bytes_of

VERSION = 1
"""The version of the format that is written, and the only one that is read."""

STREAM = "stream"  # the name of the one tensor of a file whose tensors lie in a stream

_KINDS = {
    "class": str,
    "removed": list,
    "shared": dict,
    "temporary": list,
    "channels_last": list,
    "training": bool,
    "unlike": list,
    "digest": str,
}


def check_place(file: Path) -> None:
    """Raise a CdlibError if a file is a folder, or its folder does not exist."""
    if file.is_dir() or not file.parent.is_dir():
        what = f"{file} is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise CdlibError(f"{what}: give the path of a file in a folder that exists.")


def write(file: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, stream: bool = False) -> None:
    """Write a description, with the version, and tensors to a file, all or nothing; one that is there is replaced.

    With `stream` the tensors lie in one. A CdlibError if it cannot be written.
    """
    check_place(file)
    content = content_of({"version": VERSION, **description}, tensors, stream=stream)
    try:
        with atomic(file) as opened:
            opened.write(content)
    except OSError as error:
        reason = error.strerror or error
        raise CdlibError(f"cannot write {file} ({reason}): make room or choose another folder.") from error


def read(file: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says and, if wanted, its tensors on the CPU; these are compared with the digest.

    A CdlibError if it is missing, damaged, altered, of another version, or was not made by `write`.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise CdlibError(f"{file} is not a file: give one that cdlib.save wrote.")
    try:
        with torch.device("cpu"), safe_open(file, "pt") as opened:
            description = _description(file, opened.metadata() or {})
            found = {name: opened.get_tensor(name).clone() for name in (opened.keys() if tensors else ())}
    except (SafetensorError, OSError) as error:
        raise CdlibError(f"{file} cannot be read ({one_line(error)}): cut short, or not made by cdlib.save.") from error
    if tensors and "tensors" in description:
        try:
            found = _parts(found[STREAM], description["tensors"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CdlibError(f"{file} is damaged: its stream is no such tensors. Get the file again.") from error
    if tensors and description["digest"] != digest_of(description, found):
        raise CdlibError(f"{file} was altered or damaged after it was saved (another digest): get the file again.")
    return description, found


def content_of(description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, stream: bool = False) -> bytes:
    """The bytes of a file: values that JSON has, to which the digest is added, and contiguous tensors on the CPU."""
    from safetensors.torch import save

    said = {key: value for key, value in description.items() if key != "tensors"}
    if stream:
        said["tensors"] = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
    said["digest"] = digest_of(said, tensors)
    text = json.dumps(said)
    if not stream:
        return save(dict(tensors), {"cdlib": text})
    whole = torch.frombuffer(bytearray().join(map(bytes_of, tensors.values())), dtype=torch.uint8)
    return save({STREAM: whole}, {"cdlib": base64.b85encode(zlib.compress(text.encode(), 9)).decode()})


def _parts(stream: Tensor, table: list[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    """The tensors that a stream is made of."""
    kinds = [getattr(torch, kind) for _, kind, _ in table]
    sizes = [math.prod(shape) * kind.itemsize for (_, _, shape), kind in zip(table, kinds, strict=True)]
    cut = zip(table, kinds, stream.split(sizes), strict=True)
    return {name: part.clone().view(kind).view(shape) for (name, _, shape), kind, part in cut}


def digest_of(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and bytes of all tensors and of all that is said about them."""
    said = {key: value for key, value in description.items() if key != "digest"}
    parts: list[str | memoryview] = [json.dumps(said, sort_keys=True)]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts += [json.dumps([name, str(tensor.dtype), list(tensor.shape)]), bytes_of(tensor)]
    return digest(parts)


def _description(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if "cdlib" not in metadata:
        raise CdlibError(f"{file} is a safetensors file that cdlib.save did not write: use cdlib.models.load_weights.")
    try:
        text = metadata["cdlib"]
        description = dict(json.loads(text if text[:1] == "{" else zlib.decompress(base64.b85decode(text))))
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise CdlibError(f"{file} is damaged: its description is no JSON. Get the file again.") from error
    if description.get("version") != VERSION:
        raise CdlibError(
            f"{file} is of version {description.get('version')!r} of the format, and this cdlib reads {VERSION}: "
            f"use the cdlib that wrote it ({description.get('cdlib', 'unknown')})."
        )
    for key, kind in _KINDS.items():
        if not isinstance(description.get(key), kind):
            raise CdlibError(f"{file} is damaged: its description lacks {key!r}. Get the file again.")
    return description
