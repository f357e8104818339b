"""Networks by name: the book's own, torchvision's, timm's, or a function in a file of yours."""

from __future__ import annotations

from cdlib.models.architectures import BOOK, check_drop_path, reinitialised, set_stem
from cdlib.models.by_name import RECIPE, build, names, options

__all__ = [
    "BOOK",
    "RECIPE",
    "build",
    "check_drop_path",
    "names",
    "options",
    "reinitialised",
    "set_stem",
]
