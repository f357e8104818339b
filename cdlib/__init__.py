"""cdlib: what a CNN costs, how to make it cheaper, and what that does to it. The package behind the book.

`import cdlib` needs torch, numpy and pandas only; everything else is imported where it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdlib.complexity import Profile, profile
from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from cdlib import chapters, data, models, plots, report, study, train

__version__ = "0.1.0"
__all__ = ["CdlibError", "Profile", "chapters", "data", "models", "plots", "profile", "report", "study", "train"]

_MODULES = ("chapters", "data", "models", "plots", "report", "study", "train")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"cdlib.{name}")
    raise AttributeError(f"module 'cdlib' has no attribute {name!r}")
