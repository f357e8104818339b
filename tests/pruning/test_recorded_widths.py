"""The widths in the book's records, drawn again: the networks are built from a seed, and nothing is trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cdlib
from cdlib import models
from cdlib.pruning import MODES, layers_of, plan
from cdlib.study import store

DRAWS = {"complexity_driven": "by cost", "uniform_width": "evenly", "random_draw": "at random"}
RECORDS = [
    record
    for record in map(store.read, sorted((Path(__file__).parents[2] / "results" / "pruning").glob("*.json")))
    if record["parameters"]["method"]["name"] in DRAWS
]


@cache
def network(name: str) -> tuple[nn.Module, cdlib.Groups]:
    model = models.build(name, 10)
    fixed = [path for path, layer in layers_of(model).items() if not layer.weight.requires_grad]
    return model, cdlib.find_groups(model, torch.zeros(1, 3, 32, 32), keep=fixed)


@pytest.mark.parametrize("name", sorted({record["parameters"]["model"] for record in RECORDS}))
def test_plans_give_the_recorded_widths(name: str) -> None:
    model, groups = network(name)
    seen = 0
    for record in RECORDS:
        if record["parameters"]["model"] != name:
            continue
        options: dict[str, Any] = {**record["parameters"]["method"]}
        draw = DRAWS[options.pop("name")]
        options.pop("budget", None)
        done = plan(model, groups, draw=draw, seed=record["seed"], **options)
        kept = {group.name: group.size - len(done.drop.get(group.name, ())) for group in groups.prunable}
        recorded = record["metrics"]["widths"]
        assert {group: recorded.get(group) for group in kept} == kept, record["key"]
        assert done.after["params"] == record["metrics"]["params"]
        assert done.after["macs"] == record["metrics"]["macs"]
        assert options["mode"] in MODES
        seen += 1
    assert seen >= 8
