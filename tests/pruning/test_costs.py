"""Resources while units vanish, against counts by hand and against `cdlib.profile` of what is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import Net, conv
from torch import nn

import cdlib
from cdlib import models
from cdlib.pruning.costs import RESOURCES, Meter

IMAGE = torch.zeros(1, 2, 4, 4)


def chain() -> nn.Sequential:
    return nn.Sequential(conv(2, 3), nn.ReLU(), conv(3, 4), nn.Flatten(), nn.Linear(64, 2))


def meter_of(model: nn.Module, image: torch.Tensor = IMAGE) -> Meter:
    return Meter(model, cdlib.find_groups(model, image))


def test_totals_and_shares_of_a_chain_by_hand() -> None:
    meter = meter_of(chain())
    assert meter.totals == {"params": 9 + 16 + 130, "macs": 96 + 192 + 128, "activation_bytes": 4 * (48 + 48 + 64 + 2)}
    assert meter.shares("params") == {"0": 9, "2": 16}
    assert meter.shares("macs") == {"0": 96, "2": 192}
    assert meter.shares("activation_bytes") == {"0": 4 * 96, "2": 4 * 64}


def test_a_dropped_unit_takes_its_row_and_its_columns() -> None:
    meter = meter_of(chain())
    meter.drop("0", [1])
    assert meter.totals == {"params": 6 + 12 + 130, "macs": 64 + 128 + 128, "activation_bytes": 4 * (32 + 32 + 64 + 2)}
    assert meter.shares("macs") == {"0": 64, "2": 128}
    meter.drop("2", [0, 3])
    assert meter.totals == {"params": 6 + 6 + 66, "macs": 64 + 64 + 64, "activation_bytes": 4 * (32 + 32 + 32 + 2)}
    assert meter.kept == {"0": 2, "2": 2}
    assert meter.dropped() == {"0": [1], "2": [0, 3]}
    assert meter.left("2").tolist() == [1, 2]


def test_a_group_of_several_layers_costs_their_sum() -> None:
    def forward(self: Net, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.c(x + self.b(x))

    meter = meter_of(Net(forward, a=conv(2, 3), b=conv(3, 3), c=conv(3, 1)))
    assert meter.shares("params") == {"a": 9 + 12}
    assert meter.shares("macs") == {"a": 16 * (6 + 9)}
    assert meter.shares("activation_bytes") == {"a": 3 * 4 * 48}


@pytest.mark.parametrize("units", [[1], [2, 2]])
def test_a_unit_goes_once(units: list[int]) -> None:
    meter = meter_of(chain())
    meter.drop("0", [1])
    with pytest.raises(ValueError, match="gone already"):
        meter.drop("0", units)


@pytest.mark.parametrize(
    "name", ["vgg_mini", "resnet50_cifar", "mobilenet_v2_cifar", "convnext_mini", "densenet121", "shufflenet_v2_x1_0"]
)
def test_totals_are_those_of_the_cut_network(name: str) -> None:
    size = 32 if name.endswith(("_cifar", "_mini")) else 64
    model = models.build(name, 10)
    image = torch.zeros(1, model.in_channels if hasattr(model, "in_channels") else 3, size, size)
    groups = cdlib.find_groups(model, image)
    meter = Meter(model, groups)
    full = cdlib.profile(model, image)
    assert meter.totals == {resource: getattr(full, resource) for resource in RESOURCES}
    rng = np.random.default_rng(0)
    for group, width in list(meter.kept.items()):
        for unit in rng.permutation(width)[: rng.integers(width)]:
            meter.drop(group, [int(unit)])
    small = cdlib.profile(cdlib.remove(model, groups, meter.dropped()), image)
    assert meter.totals == {resource: getattr(small, resource) for resource in RESOURCES}
    assert meter.totals["params"] < full.params
    for resource in RESOURCES:
        assert sum(meter.shares(resource).values()) <= meter.totals[resource] * (1 + 1e-12)
