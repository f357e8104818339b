"""Train and evaluate networks."""

from __future__ import annotations

from cdlib.train.batch_norm import recalibrated
from cdlib.train.evaluation import Evaluation, checked, evaluate, evaluating, logits_of
from cdlib.train.fitting import Fit, fit
from cdlib.train.recipe import Recipe, learning_rate

__all__ = [
    "Evaluation",
    "Fit",
    "Recipe",
    "checked",
    "evaluate",
    "evaluating",
    "fit",
    "learning_rate",
    "logits_of",
    "recalibrated",
]
