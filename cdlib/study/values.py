"""What may enter a record: JSON values that mean the same on any machine."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cdlib.errors import CdlibError

# An absolute path: at the start or after a separator, "/x", "~/x" or "C:\\x", but not the "//" of a web address.
_PATH = re.compile(r"(?:^|[\s=:,;'\"(\[])(?:~?/(?![/\s])|[A-Za-z]:[\\/](?!/))\S")


def checked(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a deep copy of `values` as JSON will give them back (lists for tuples); `name` is for the message.

    A CdlibError if a value is no JSON value, is NaN or infinite, or holds an absolute path, which means nothing on
    another machine.
    """
    if not isinstance(values, Mapping):
        raise CdlibError(f"{name} is a {type(values).__name__}; give a dict of JSON values.")
    copied: dict[str, Any] = _checked(values, name)
    return copied


def _checked(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        for label in value:
            if not isinstance(label, str):
                kind = type(label).__name__
                raise CdlibError(f"{name} has the key {label!r}, a {kind}; JSON takes only strings as keys.")
        return {label: _checked(inner, f"{name}.{label}") for label, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, str) and _PATH.search(value):
        raise CdlibError(f"{name} is {value!r}, a path of this machine; give a name or a relative path.")
    if isinstance(value, float) and not math.isfinite(value):
        raise CdlibError(f"{name} is {value}, which JSON cannot hold; record None, or find out why it is not a number.")
    if value is None or type(value) in (bool, int, float, str):
        return value
    hint = "use .item()" if hasattr(value, "item") else "use numbers, strings, lists and dicts"
    raise CdlibError(f"{name} is a {type(value).__name__}, not a JSON value; {hint}.")


def canonical(value: Any) -> Any:
    """Return checked values with whole floats as integers, so that 1 and 1.0 give one key."""
    if isinstance(value, dict):
        return {label: canonical(inner) for label, inner in value.items()}
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
