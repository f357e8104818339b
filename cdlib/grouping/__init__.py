"""Which slices of a network’s tensors can only be removed together."""

from __future__ import annotations

from cdlib.grouping.finding import find_again, find_groups
from cdlib.grouping.groups import Drop, Group, Groups, Slice, check_groups, parameter_share
from cdlib.grouping.labels import Flags, Ids, Key
from cdlib.grouping.ops import arguments
from cdlib.grouping.preconditions import check, check_batch
from cdlib.grouping.propagation import choose_reshapes, follow
from cdlib.grouping.rules import RULES
from cdlib.grouping.walk_state import Walk

__all__ = [
    "RULES",
    "Drop",
    "Flags",
    "Group",
    "Groups",
    "Ids",
    "Key",
    "Slice",
    "Walk",
    "arguments",
    "check",
    "check_batch",
    "check_groups",
    "choose_reshapes",
    "find_again",
    "find_groups",
    "follow",
    "parameter_share",
]
