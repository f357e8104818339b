"""Removing what a network can do without: which units, how many of each layer, before, during or after training."""

from __future__ import annotations

from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.pruning.filter_ranking import ranking
from cdlib.pruning.layer_widths import MODES, complexity_driven, plan, random_draw, uniform_width
from cdlib.pruning.oto import DHSPG, HESSO, GroupSparse, dhspg, hesso
from cdlib.pruning.saliency import MEASURES, lowest, scores, with_gradients
from cdlib.pruning.semi_structured import two_to_four
from cdlib.pruning.targets import Plan
from cdlib.pruning.unstructured_pruning import Gradual, permanent, unstructured
from cdlib.pruning.weight_masks import layers_of, put_on_like, refresh

__all__ = [
    "DHSPG",
    "HESSO",
    "MEASURES",
    "MODES",
    "RESOURCES",
    "Gradual",
    "GroupSparse",
    "Meter",
    "Plan",
    "complexity_driven",
    "dhspg",
    "hesso",
    "layers_of",
    "lowest",
    "permanent",
    "plan",
    "put_on_like",
    "random_draw",
    "ranking",
    "refresh",
    "scores",
    "two_to_four",
    "uniform_width",
    "unstructured",
    "with_gradients",
]
