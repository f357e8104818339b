"""Training and pruning at once: joint optimizers of the OTO family."""

from __future__ import annotations

from cdlib.pruning.oto.group_sparse import GroupSparse
from cdlib.pruning.oto.optimizers import DHSPG, HESSO, dhspg, hesso

__all__ = [
    "DHSPG",
    "HESSO",
    "GroupSparse",
    "dhspg",
    "hesso",
]
