"""Cut units out of a network, or set them to zero, and prove that the cut was right."""

from __future__ import annotations

from cdlib.surgery.exactness import Exactness, check_exact, difference, random_like, randomised
from cdlib.surgery.history import HISTORY, from_json, is_complete, to_json
from cdlib.surgery.masked_reference import masked
from cdlib.surgery.removal import cut, remove, replay, rewritten, slices_of, zero
from cdlib.surgery.rewriting.module import Rewritten

__all__ = [
    "HISTORY",
    "Exactness",
    "Rewritten",
    "check_exact",
    "cut",
    "difference",
    "from_json",
    "is_complete",
    "masked",
    "random_like",
    "randomised",
    "remove",
    "replay",
    "rewritten",
    "slices_of",
    "to_json",
    "zero",
]
