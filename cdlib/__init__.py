"""cdlib: what a CNN costs, how to make it cheaper, and what that does to it. The package behind the book.

`import cdlib` needs torch, numpy, pandas and safetensors only, and imports everything where it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from cdlib import data, graph, grouping, models, plots, pruning, report, serialization, study, surgery, train
    from cdlib.complexity import Profile, profile
    from cdlib.grouping import Group, Groups, Slice, find_groups
    from cdlib.serialization import load, save
    from cdlib.surgery import remove, zero

__version__ = "0.1.0"
__all__ = [
    "CdlibError",
    "Group",
    "Groups",
    "Profile",
    "Slice",
    "complexity",
    "data",
    "edge",
    "find_groups",
    "graph",
    "grouping",
    "load",
    "models",
    "plots",
    "profile",
    "pruning",
    "quantization",
    "remove",
    "report",
    "save",
    "serialization",
    "study",
    "surgery",
    "train",
    "zero",
]

_NAMES = {
    "complexity": ["Profile", "profile"],
    "grouping": ["Group", "Groups", "Slice", "find_groups"],
    "surgery": ["remove", "zero"],
    "serialization": ["save", "load"],
}
_FROM = {name: f"cdlib.{room}" for room, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(_FROM[name]), name)
    if name in __all__:
        return import_module(f"cdlib.{name}")
    raise AttributeError(f"module 'cdlib' has no attribute {name!r}")
