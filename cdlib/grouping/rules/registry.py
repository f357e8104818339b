"""What operators do to labels: how a rule is entered and found.

A rule takes the walk, an operator and its named arguments, and returns the labels of its outputs. The modules beside
this one enter theirs when they are imported, which `cdlib.grouping.rules` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from cdlib.graph import Op
from cdlib.grouping.labels import Labels, unlabelled
from cdlib.grouping.walk_state import Walk

Rule = Callable[[Walk, Op, dict[str, Any]], Labels | list[Labels]]
Entered = TypeVar("Entered", bound=Rule)
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Entered], Entered]:
    """Enter a function as the rule of some operators."""

    def enter(function: Entered) -> Entered:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def rule_for(op: Op) -> Rule:
    """The rule of an operator, in place or not; that for unknown operators if there is none."""
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.target.tags:  # element by element, after broadcasting
        return RULES["pointwise"]
    return RULES.get(op.name.rstrip("_"), no_rule)


def no_rule(walk: Walk, op: Op, args: dict[str, Any]) -> list[Labels]:
    """An operator about which nothing is known: everything that it touches stays as it is."""
    why = f"meets the operator {op.target}, for which there is no rule"
    for value in op.inputs:
        walk.freeze(walk.of(value), op.index, why)
        if value.kind == "parameter" and len(value.shape) > 1:  # a layer all the same: its rows are a group
            walk.emit(value, 0)
    return [unlabelled(value.shape, why) for value in op.outputs]
