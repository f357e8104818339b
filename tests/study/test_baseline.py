"""The baseline experiment measures one network in two forms, and goes on after a kill where it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cdlib import complexity, models, report
from cdlib.errors import CdlibError
from cdlib.quantization import dynamic
from cdlib.study import baseline, store
from cdlib.study.runs import run
from cdlib.train import Recipe

# The weights of convnext_mini's linear layers: per block 2 x 4 x width^2, two blocks a stage, and the classifier.
LINEAR_WEIGHTS = 2 * 8 * (64**2 + 128**2 + 256**2) + 256 * 10


def parameters(**recipe: Any) -> dict[str, Any]:
    return {
        "data": "digits",
        "model": "vgg_mini",
        "options": {"in_channels": 1},
        "recipe": dataclasses.asdict(Recipe(**{"epochs": 1, "batch_size": 128, **recipe})),
        "runs": 1,
    }


@pytest.fixture
def convnext() -> nn.Module:
    torch.manual_seed(0)
    return models.build("convnext_mini").eval()


def test_int8_saves_three_bytes_per_linear_weight_and_nothing_else(convnext: nn.Module) -> None:
    x = torch.zeros(1, 3, 32, 32)
    before, after = complexity.profile(convnext, x), complexity.profile(dynamic(convnext), x)
    assert after.weight_bytes == before.weight_bytes - 3 * LINEAR_WEIGHTS
    assert (after.params, after.macs) == (before.params, before.macs)


def test_int8_weights_are_within_half_a_step_and_the_original_is_untouched(convnext: nn.Module) -> None:
    state = {name: value.clone() for name, value in convnext.state_dict().items()}
    packed = dynamic(convnext)
    assert all(torch.equal(value, state[name]) for name, value in convnext.state_dict().items())
    assert convnext.classifier[2].weight.dtype == torch.float32
    weight, stored = convnext.classifier[2].weight, packed.classifier[2].weight()
    assert stored.dtype == torch.qint8
    assert (stored.dequantize() - weight).abs().max() <= 0.5001 * stored.q_scale()


def test_a_run_holds_both_measurements_and_their_disagreements(tmp_path: Path) -> None:
    record = run("baseline", baseline.train_and_compress, parameters(), seed=1, record_in=tmp_path / "results")
    metrics = record["metrics"]
    assert metrics["images"] == 359
    assert metrics["float32"]["params"] == metrics["int8"]["params"] == 77050
    assert set(metrics["float32"]) == set(metrics["int8"]) <= set(report.QUANTITIES)
    change = round(359 * (metrics["int8"]["accuracy"] - metrics["float32"]["accuracy"]))
    assert metrics["gained"] - metrics["lost"] == change
    assert record["provenance"]["data"] == metrics["fingerprint"]
    row = store.load(tmp_path / "results", "baseline").iloc[0]
    assert row["float32.accuracy"] == metrics["float32"]["accuracy"]
    assert row["recipe.epochs"] == 1


def test_a_killed_run_does_not_train_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(folder: str) -> store.Record:
        return run(
            "baseline", baseline.train_and_compress, parameters(), seed=2, record_in=tmp_path / folder / "results"
        )

    whole = record("one")
    with monkeypatch.context() as patched:
        patched.setattr(report, "measure", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record("two")
    steps: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", lambda *_, **__: steps.append(1))
        resumed = record("two")
    assert not steps
    for network in ("float32", "int8"):
        assert resumed["metrics"][network]["accuracy"] == whole["metrics"][network]["accuracy"]
    assert len(resumed["provenance"]["resumed"]) == 1


def test_a_recipe_is_checked_before_the_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline.data, "load", lambda name: pytest.fail("the data were read"))
    for field, value, message in (("optimizer", "adam", "did you mean 'adamw'"), ("epoch", 3, "did you mean 'epochs'")):
        wrong = parameters()
        wrong["recipe"][field] = value
        with pytest.raises(CdlibError, match=message):
            run("baseline", baseline.train_and_compress, wrong, record_in=tmp_path / "results")
