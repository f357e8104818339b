"""What a network costs: parameters, multiply-accumulates, bytes of weights and of activations, layer by layer."""

from __future__ import annotations

from cdlib.complexity.layer_table import COLUMNS
from cdlib.complexity.macs import MAC_RULES, macs_of
from cdlib.complexity.totals import Profile, in_units, lifetimes, profile

__all__ = [
    "COLUMNS",
    "MAC_RULES",
    "Profile",
    "in_units",
    "lifetimes",
    "macs_of",
    "profile",
]
