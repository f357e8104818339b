"""Removing what a network can do without: which units, how many of each layer, before, during or after training."""

from __future__ import annotations

from cdlib.pruning.costs import RESOURCES, Meter
from cdlib.pruning.filter_ranking import ranking
from cdlib.pruning.layer_widths import MODES, complexity_driven, plan, random_draw, uniform_width
from cdlib.pruning.oto import dhspg, hesso
from cdlib.pruning.saliency import MEASURES, lowest, scores, with_gradients
from cdlib.pruning.unstructured_pruning import Gradual, permanent, unstructured

__all__ = [
    "MEASURES",
    "MODES",
    "RESOURCES",
    "Gradual",
    "Meter",
    "complexity_driven",
    "dhspg",
    "hesso",
    "lowest",
    "permanent",
    "plan",
    "random_draw",
    "ranking",
    "scores",
    "uniform_width",
    "unstructured",
    "with_gradients",
]
