"""Networks as files and as bytes."""

from __future__ import annotations

from cdlib.serialization.archive import check_place
from cdlib.serialization.encoding import FORMS, decode, encode, sizes
from cdlib.serialization.network_files import example_input, load, save
from cdlib.serialization.sparse_execution import executable

__all__ = ["FORMS", "check_place", "decode", "encode", "example_input", "executable", "load", "save", "sizes"]
