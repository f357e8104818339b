"""Removing what a network can do without: which channels belong together, and cutting them out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdlib.pruning.masks import permanent, unstructured
    from cdlib.pruning.oto import dhspg, hesso
    from cdlib.pruning.ranks import ranking
    from cdlib.pruning.widths import complexity_driven, random_draw, uniform_width

__all__ = [
    "complexity_driven",
    "dhspg",
    "hesso",
    "permanent",
    "random_draw",
    "ranking",
    "uniform_width",
    "unstructured",
]

_FROM = {
    **dict.fromkeys(("permanent", "unstructured"), "cdlib.pruning.masks"),
    **dict.fromkeys(("dhspg", "hesso"), "cdlib.pruning.oto"),
    "ranking": "cdlib.pruning.ranks",
    **dict.fromkeys(("complexity_driven", "random_draw", "uniform_width"), "cdlib.pruning.widths"),
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(_FROM[name]), name)
    raise AttributeError(f"module 'cdlib.pruning' has no attribute {name!r}")
