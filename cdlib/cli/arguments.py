"""From the text of a command line to the values it stands for: shapes, settings, literals."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cdlib.errors import CdlibError


def sample(text: str) -> Tensor:
    """Return one sample of zeros, float32 [1, ...], of a shape like ``3x32x32``.

    A CdlibError if it is no shape, or too large to be held.
    """
    if not re.fullmatch(r"[1-9]\d*([x×,][1-9]\d*)*", text.lower()):
        raise CdlibError(f"--input {text!r} is not a shape: give positive sizes such as 3x32x32, without the batch.")
    try:
        return torch.zeros(1, *(int(size) for size in re.split("[x×,]", text.lower())))
    except (RuntimeError, OverflowError) as error:
        raise CdlibError(f"--input {text} does not fit into memory: give smaller sizes.") from error


def pairs(option: str, texts: Iterable[str] | None) -> dict[str, str]:
    """Return the ``name=value`` texts that were given to an option as a mapping.

    A CdlibError if one of them is none, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise CdlibError(f"{option} {text!r} is not a setting: give name=value.")
        if name in found:
            raise CdlibError(f"{option} {name} is given twice: give it once.")
        found[name] = value
    return found


def literal(text: str) -> Any:
    """Return what a Python or JSON literal stands for (2, 0.5, true, None), and any other text as it is."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text
