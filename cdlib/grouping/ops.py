"""What the rules ask about an operator: its named arguments, is it pointwise, is an operand a weight."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from cdlib.graph import Op, Value


def is_weight(value: Value) -> bool:
    """Whether a value does not depend on the network's input."""
    return value.kind in ("parameter", "buffer", "constant")


@lru_cache(maxsize=4096)
def _parameters(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments)


def arguments(op: Op) -> dict[str, Any]:
    """What an operator was called with, by the names of its schema, defaults filled in."""
    named = _parameters(op.target)
    found = dict(named)
    found.update({name: value for (name, _), value in zip(named, op.args, strict=False)})
    found.update(op.kwargs)
    return found


@lru_cache(maxsize=4096)
def is_pointwise(target: Any) -> bool:
    """Whether an operator works element by element, after broadcasting."""
    return torch.Tag.pointwise in target.tags
