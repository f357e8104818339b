"""A network that ships is the one whose record says what it can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdlib import data, models
from cdlib.study import run, train_network
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
