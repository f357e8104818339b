"""What a step of HESSO and DHSPG costs beside their base optimizer alone, in seconds and in memory.

    python benchmarks/joint.py [--model convnext_tiny] [--batch 32] [--rounds 15] [--threads 1]

All arms step over copies of the same network with the same gradients, one after the other in every round. A row gives
the median over the rounds of an arm's own ratio to the base in the same round: of ``optimizer.step()`` alone, and of a
whole training step, whose forward and backward pass is the same for all and timed once a round. Peak is the most memory
that a step had allocated at a time, first the same of the very first step, in which the base makes its state and the
arms without a warm-up choose their units; state is what the optimizer keeps beyond the base.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib import models
from cdlib.pruning import dhspg, hesso
from cdlib.report import cpu_peak

LONG = 10_000  # steps of a phase that does not end during the measurement
BASES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD with momentum": lambda m: torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4),
}
ARMS: dict[str, Callable[[nn.Module, Any, Any], torch.optim.Optimizer]] = {
    "base": lambda m, groups, base: base,
    "HESSO, warm-up": lambda m, groups, base: hesso(m, groups, base, 0.7, start=LONG, steps=LONG),
    "HESSO, shrinking": lambda m, groups, base: hesso(m, groups, base, 0.7, steps=LONG),
    "HESSO, done": lambda m, groups, base: hesso(m, groups, base, 0.7, steps=1),
    "DHSPG, pulling": lambda m, groups, base: dhspg(m, groups, base, 0.7, steps=LONG),
    "DHSPG, done": lambda m, groups, base: dhspg(m, groups, base, 0.7, steps=1),
}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def kept(optimizer: Any) -> int:
    """The bytes that the optimizer keeps beyond the base."""
    if not hasattr(optimizer, "units"):
        return 0
    held = (optimizer.units.all, optimizer._active, optimizer._fixed)
    indices = sum(2 * t.nbytes for s in held for p in s.parts for t in (p.index, p.unit))  # by part, and in one row
    return indices + sum(t.nbytes for s in held for t in s._copies)


def rows(name: str, make: Callable[[nn.Module], torch.optim.Optimizer], arguments: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = models.build(arguments.model, 10)
    x, y = torch.randn(arguments.batch, 3, 32, 32), torch.randint(0, 10, (arguments.batch,))
    networks = {arm: copy.deepcopy(model) for arm in ARMS}
    groups = cdlib.find_groups(model, x[:1])
    optimizers = {arm: wrap(networks[arm], groups, make(networks[arm])) for arm, wrap in ARMS.items()}
    steps: dict[str, list[float]] = {arm: [] for arm in ARMS}
    passes: list[float] = []
    first: dict[str, int] = {}
    for turn in range(arguments.rounds + 2):  # of the first, memory; the second is a warm-up; the others are timed
        model.zero_grad()
        passing = seconds(lambda: F.cross_entropy(model(x), y).backward())
        if turn > 1:
            passes.append(passing)
        for arm, network in networks.items():
            for mine, given in zip(network.parameters(), model.parameters(), strict=True):
                mine.grad = given.grad.clone()
            step = optimizers[arm].step
            if not turn:
                first[arm] = cpu_peak(step)
                continue
            stepping = seconds(step)
            if turn > 1:
                steps[arm].append(stepping)
        print(f"{name}: round {turn + 1} of {arguments.rounds + 2}", end="\r", flush=True)
    found = []
    for arm, took in steps.items():
        alone = [a / b for a, b in zip(took, steps["base"], strict=True)]
        whole = [(p + a) / (p + b) for p, a, b in zip(passes, took, steps["base"], strict=True)]
        found.append(
            {
                "base": name,
                "arm": arm,
                "step ms": 1000 * statistics.median(took),
                "of step": statistics.median(alone),
                "of training step": statistics.median(whole),
                "highest": max(whole),
                "first MB": first[arm] / 1e6,
                "peak MB": cpu_peak(optimizers[arm].step) / 1e6,
                "state MB": kept(optimizers[arm]) / 1e6,
            }
        )
    print(f"{name}: forward and backward {1000 * statistics.median(passes):.0f} ms{' ' * 20}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = pd.DataFrame([row for name, make in BASES.items() for row in rows(name, make, arguments)])
    print(table.to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
