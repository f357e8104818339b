"""cdlib: what a CNN costs, how to make it cheaper, and what that does to it. The package behind the book.

`import cdlib` needs torch, numpy and pandas only, and imports everything where it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdlib.errors import CdlibError

if TYPE_CHECKING:
    from cdlib import chapters, data, models, plots, report, study, train
    from cdlib.complexity import Profile, profile

__version__ = "0.1.0"
__all__ = ["CdlibError", "Profile", "chapters", "data", "models", "plots", "profile", "report", "study", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Profile", "profile"):
        return getattr(import_module("cdlib.complexity"), name)
    if name in __all__:
        return import_module(f"cdlib.{name}")
    raise AttributeError(f"module 'cdlib' has no attribute {name!r}")
