"""What operators do to labels: a rule for each kind of operator, entered by the modules that are imported here."""

from __future__ import annotations

from cdlib.grouping.rules import norms, products, reshaping, slicing, spatial
from cdlib.grouping.rules.registry import RULES, rule_for

__all__ = ["RULES", "norms", "products", "reshaping", "rule_for", "slicing", "spatial"]
