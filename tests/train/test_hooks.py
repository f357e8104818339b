"""What `cdlib.train.fit` lets in, an optimizer and a function called after each step: checked before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cdlib
from cdlib import CdlibError, data
from cdlib.pruning import hesso, permanent, unstructured
from cdlib.pruning.unstructured_pruning import Gradual
from cdlib.train import Recipe, fit

STEPS = 10  # an epoch: 1,437 - 144 training images of the digits in batches of 128


def network() -> nn.Sequential:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def train(model: nn.Module, epochs: int = 1, ema: float = 0.0, **options: Any) -> cdlib.train.Fit:
    recipe = Recipe(epochs=epochs, batch_size=128, warmup_epochs=0, lr=0.01, ema=ema)
    return fit(model, data.load("digits"), recipe, progress=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after_step": 5}, "after_step=5 cannot be called"),
        ({"optimizer": "sgd"}, "optimizer='sgd' cannot be called"),
        ({"optimizer": lambda base: None}, "optimizer returned NoneType: return an optimizer over the parameters"),
        ({"optimizer": lambda base: torch.optim.SGD(network().parameters())}, "optimizer returned SGD: return an"),
    ],
)
def test_what_cannot_train_is_refused(options: dict[str, Any], message: str) -> None:
    model = network()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(CdlibError, match=message):
        train(model, **options)
    assert all(map(torch.equal, before, model.parameters()))


def test_masks_that_would_not_be_done_in_time_are_refused() -> None:
    masked = unstructured(network(), torch.zeros(1, 1, 8, 8), 0, 0)
    with pytest.raises(CdlibError, match=f"Gradual is done after {STEPS + 1} steps, but 1 epochs are only {STEPS}"):
        train(masked, after_step=Gradual(masked, 0.8, 0.8, end=STEPS + 1))
    train(masked, after_step=Gradual(masked, 0.8, 0.8, end=STEPS))
    assert (permanent(masked)[2].weight == 0).float().mean() == pytest.approx(0.8, abs=1e-3)  # type: ignore[index]


def test_an_average_of_weights_leaves_growing_masks_as_they_are() -> None:
    masked = unstructured(network(), torch.zeros(1, 1, 8, 8), 0, 0)
    train(masked, ema=0.9, after_step=Gradual(masked, 0.8, 0.8, end=STEPS))
    assert set(masked[2].weight_mask.unique().tolist()) == {0.0, 1.0}  # type: ignore[index, union-attr]
    assert (permanent(masked)[2].weight == 0).float().mean() == pytest.approx(0.8, abs=1e-3)  # type: ignore[index]


def test_a_joint_run_is_not_resumed_by_another_optimizer(tmp_path: Path) -> None:
    def joint(model: nn.Module) -> Any:
        return lambda base: hesso(model, cdlib.find_groups(model, torch.zeros(1, 1, 8, 8)), base, steps=STEPS)

    class Stop(Exception):
        pass

    def stop(step: int) -> None:
        if step == STEPS + 1:
            raise Stop

    model, file = network(), tmp_path / "run.pt"
    with pytest.raises(Stop):
        train(model, 2, checkpoint=file, optimizer=joint(model), after_step=stop)
    with pytest.raises(CdlibError, match="optimizer is 'HESSO' there and None here"):
        train(network(), 2, checkpoint=file)
    again = network()
    train(again, 2, checkpoint=file, optimizer=joint(again))
    assert (again[0].weight.flatten(1) == 0).all(1).sum() > 0
