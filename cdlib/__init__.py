"""cdlib: what a CNN costs, how to make it cheaper, and what that does to it. The package behind the book.

`import cdlib` needs torch, numpy and pandas only, and imports everything where it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from cdlib import chapters, data, models, plots, pruning, report, study, train
    from cdlib.complexity import Profile, profile
    from cdlib.pruning.files import load, save
    from cdlib.pruning.groups import Group, Groups, Slice, find_groups
    from cdlib.pruning.subnet import remove, zero

__version__ = "0.1.0"
__all__ = [
    "CdlibError",
    "Group",
    "Groups",
    "Profile",
    "Slice",
    "chapters",
    "data",
    "find_groups",
    "load",
    "models",
    "plots",
    "profile",
    "pruning",
    "remove",
    "report",
    "save",
    "study",
    "train",
    "zero",
]

_FROM = {
    "Profile": "cdlib.complexity",
    "profile": "cdlib.complexity",
    "Group": "cdlib.pruning.groups",
    "Groups": "cdlib.pruning.groups",
    "Slice": "cdlib.pruning.groups",
    "find_groups": "cdlib.pruning.groups",
    "remove": "cdlib.pruning.subnet",
    "zero": "cdlib.pruning.subnet",
    "save": "cdlib.pruning.files",
    "load": "cdlib.pruning.files",
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(_FROM[name]), name)
    if name in __all__:
        return import_module(f"cdlib.{name}")
    raise AttributeError(f"module 'cdlib' has no attribute {name!r}")
