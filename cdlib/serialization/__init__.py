"""Networks as files and as bytes."""

from __future__ import annotations

from cdlib.serialization.encoding import FORMS, decode, encode, executable, sizes, two_to_four
from cdlib.serialization.network_files import load, save

__all__ = [
    "FORMS",
    "decode",
    "encode",
    "executable",
    "load",
    "save",
    "sizes",
    "two_to_four",
]
