"""Networks by name: the book's own, torchvision's, timm's, or a function in a file of yours."""

from __future__ import annotations

from cdlib.models.architectures import BOOK, reinitialised, set_stem
from cdlib.models.by_name import RECIPE, build, fresh, names, options
from cdlib.models.shipped import CARD, Card, keep, rounded, shipped_names, trained
from cdlib.models.state_dicts import load_weights
from cdlib.models.whitening import whiten

__all__ = [
    "BOOK",
    "CARD",
    "RECIPE",
    "Card",
    "build",
    "fresh",
    "keep",
    "load_weights",
    "names",
    "options",
    "reinitialised",
    "rounded",
    "set_stem",
    "shipped_names",
    "trained",
    "whiten",
]
