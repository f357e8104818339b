"""What the tests of joint training and pruning share: small networks, the methods and their bases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import cdlib
from cdlib.pruning import dhspg, hesso

X = torch.zeros(1, 3, dtype=torch.float64)
METHODS = {"hesso": hesso, "dhspg": dhspg}
BASES: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def chain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return nn.Sequential(*layers).double()


def make(method: Any = hesso, model: nn.Module | None = None, **options: Any) -> Any:
    model = model or chain()
    groups = cdlib.find_groups(model, X, keep=options.pop("keep", ()))
    return method(model, groups, torch.optim.SGD(model.parameters(), lr=0.1), **{"steps": 4, **options})


def gradient(name: str, x: np.ndarray, t: int) -> np.ndarray:
    """A gradient that depends on weights and step, so that any deviation grows."""
    noise = np.random.default_rng([t, len(name), ord(name[0])]).normal(size=x.shape)
    return 0.5 * x + noise
