"""A network that ships is the one whose record says what it can do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cdlib import data, models
from cdlib.study import prune_over_grid, run, train_network
from cdlib.train import evaluate


def test_the_file_holds_the_network_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    recipe = {"epochs": 2, "batch_size": 256, "optimizer": "sgd", "lr": 0.05, "warmup_epochs": 0, "augment": False}
    parameters = {"data": "digits", "model": "vgg_mini", "options": {"in_channels": 1}, "recipe": recipe, "runs": 1}
    record = run("networks", train_network, {"name": "tiny", **parameters})
    model = models.trained("tiny", tmp_path / "networks")
    card, metrics, dataset = getattr(model, models.CARD), record["metrics"], data.load("digits")
    assert (card.record, card.accuracy) == (record["key"], metrics["accuracy"])
    assert evaluate(model, dataset.test).accuracy == metrics["accuracy"] > 0.15
    assert (card.mean, card.std) == (list(dataset.train.mean), list(dataset.train.std))
    assert len(metrics["curve"]) == 2
    assert metrics["train_macs"] == 3 * metrics["macs"] * 2 * 5 * 256  # 1,295 images: five whole batches
    run("networks", train_network, parameters)
    assert [path.name for path in (tmp_path / "networks").glob("*.safetensors")] == ["tiny.safetensors"]


def test_a_network_over_the_square_of_two_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer whose weights are 1 to 4 per class, and a convolution that is a number: all by hand."""
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr(models, "trained", lambda name: _by_hand())
    parameters = {"network": "any", "data": "digits", "by": "l1", "amounts": [0.0, 0.5]}
    found = run("grid", prune_over_grid, parameters)["metrics"]
    assert found["nonzero_params"] == [[4 + 40, 4 + 20], [2 + 40, 2 + 20]]
    test = data.load("digits").test
    bright = test.input(len(test)).mean((1, 2, 3)) > 0  # the last class has the largest weights: it wins or is last
    right = float((test.labels == torch.where(bright, 9, 0)).double().mean())
    assert found["accuracy"] == [[pytest.approx(right)] * 2] * 2  # zeros are the weights of the first classes
    assert found["dense"] == pytest.approx(right)


def _by_hand() -> nn.Module:
    conv, linear = nn.Conv2d(1, 4, 1, bias=False), nn.Linear(4, 10, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1))
        linear.weight.copy_(torch.arange(1.0, 41).view(10, 4))
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()
