"""What users do next: whatever a method returns can be trained, saved, loaded, exported and pruned again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cdlib
from cdlib import models, pruning
from cdlib.surgery.exactness import check_exact

X = torch.zeros(1, 1, 8, 8)


def joint(method: Callable[..., Any]) -> Callable[[nn.Module], nn.Module]:
    def run(model: nn.Module) -> nn.Module:
        groups = cdlib.find_groups(model, X)
        optimizer = method(model, groups, torch.optim.SGD(model.parameters(), lr=0.01), 0.4, steps=2)
        train(model, optimizer, 2)
        return cdlib.remove(model, groups, optimizer.drop())

    return run


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "complexity_driven": lambda m: pruning.complexity_driven(m, cdlib.find_groups(m, X), "FA", 0.4),
    "uniform_width": lambda m: pruning.uniform_width(m, cdlib.find_groups(m, X), "PA", 0.4),
    "random_draw": lambda m: pruning.random_draw(m, cdlib.find_groups(m, X), "MA", 0.4),
    "ranking": lambda m: pruning.ranking(m, cdlib.find_groups(m, X), 0.4, resource="macs"),
    "unstructured": lambda m: pruning.permanent(pruning.unstructured(m, X, 0.6, 0.6)),
    "hesso": joint(pruning.hesso),
    "dhspg": joint(pruning.dhspg),
}


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.randint(0, 10, (8,))).backward()
        optimizer.step()
    model.eval()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    found: Callable[[nn.Module], nn.Module] = METHODS[request.param]
    return found


@pytest.mark.parametrize("name", ["mobilenet_mini", "convnext_mini"])
def test_what_users_do_next(method: Callable[[nn.Module], nn.Module], name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = method(models.build(name, 10, in_channels=1)).eval()
    images = torch.randn(4, 1, 8, 8)
    before = small(images).detach()

    cdlib.save(small, tmp_path / "small.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "small.cdlib").eval()(images), before)

    exported = torch.export.export(small, (images,)).module()
    torch.testing.assert_close(exported(images), before)

    train(small, torch.optim.SGD(small.parameters(), lr=0.1), 2)
    assert not torch.equal(small(images), before)

    groups = cdlib.find_groups(small, X)
    again = pruning.ranking(small, groups, 0.3, resource="params")
    assert cdlib.profile(again, X).params <= 0.7 * cdlib.profile(small, X).params
    train(again, torch.optim.SGD(again.parameters(), lr=0.1), 1)
    check_exact(small, groups, {group.name: [0] for group in groups.prunable if group.size > 1})


def test_a_masked_network_can_be_cut_and_its_masks_follow() -> None:
    masked = pruning.unstructured(models.build("vgg_mini", 10, in_channels=1), X, 0.5, 0.5)
    small = pruning.permanent(pruning.ranking(masked, cdlib.find_groups(masked, X), 0.4, resource="params"))
    held = dict(small.named_parameters())
    assert (
        sum(int((p == 0).sum()) for n, p in held.items() if p.dim() > 1) / sum(p.numel() for p in held.values()) > 0.3
    )
    train(small, torch.optim.SGD(small.parameters(), lr=0.1), 1)
