"""Which slices of a network’s tensors can only be removed together."""

from __future__ import annotations

from cdlib.grouping.groups import Drop, Group, Groups, Key, Slice, find_groups

__all__ = [
    "Drop",
    "Group",
    "Groups",
    "Key",
    "Slice",
    "find_groups",
]
