"""What operators do to labels: a rule for each kind of operator, entered by the modules that are imported here."""

from __future__ import annotations

from cdlib.grouping.rules import conv, matmul, norms, pointwise, reductions, reshape, slicing, spatial
from cdlib.grouping.rules.registry import RULES, rule_for

__all__ = ["RULES", "conv", "matmul", "norms", "pointwise", "reductions", "reshape", "rule_for", "slicing", "spatial"]
