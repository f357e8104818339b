"""The quantization experiment: each way ends with a record of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import cdlib
from cdlib import CdlibError, data, models, train
from cdlib.study import quantize_network, run
from cdlib.study.few_bits import WAYS

TUNE = {"epochs": 1, "batch_size": 100, "lr": 1e-4}
SOME: dict[str, dict[str, Any]] = {
    "float": {},
    "static": {"bits": 4},
    "train": {"recipe": TUNE, "bits": 4},
    "search": {"bits": 4, "way": "uniform"},
    "share": {"bits": 4, "recipe": TUNE},
}


@pytest.mark.parametrize("name", WAYS)
def test_a_way_is_measured_as_a_file_and_in_a_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    plan = {"network": "plain-16", "data": "cifar10-sample", "way": {"name": name, **SOME[name]}}
    found = run("quantization", quantize_network, plan, seed=1, record_in=tmp_path)["metrics"]
    dense = sum(p.numel() for p in models.trained("plain-16").parameters()) * 4
    assert found["accuracy"] > 0.7 and found["macs"] == 10_135_072
    if name in ("static", "train", "search"):
        assert found["steps"] <= 1 and set(found["bits"].values()) == {4}
        assert found["file_bytes"] < 0.17 * dense and found["weight_bytes"] < 0.14 * dense
        assert found["bit_operations"] == found["macs"] * 4 * 8
    else:
        assert found["bit_operations"] == found["macs"] * 32 * 32
        assert (found["file_bytes"] < 0.17 * dense) == (name == "share")


@pytest.mark.parametrize(
    ("prune", "way"),
    [
        (
            {
                "name": "ranking",
                "target": 0.5,
                "by": "l2",
                "resource": "macs",
                "options": {"relu": True},
                "teacher": "resnet-mini",
            },
            {"name": "static"},
        ),
        ({"name": "unstructured", "conv": 0.7, "linear": 0.7, "by": "l1"}, {"name": "share", "bits": 3}),
    ],
)
def test_a_network_is_pruned_before(
    prune: dict[str, Any], way: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    (tmp_path / "networks").mkdir()
    plan = {"network": "plain-16", "data": "cifar10-sample", "way": way}
    whole = run("quantization", quantize_network, plan, record_in=tmp_path)["metrics"]
    tuned = {**prune, "recipe": {**TUNE, "distill": 0.5}}
    plan |= {"prune": tuned, "name": "small"}
    found = run("quantization", quantize_network, plan, record_in=tmp_path)["metrics"]
    kept = cdlib.load(tmp_path / "networks" / "small.cdlib")
    assert any(isinstance(module, nn.GELU) for module in kept.modules()) == ("options" not in prune)
    assert train.evaluate(kept, data.load("cifar10-sample").test).accuracy == found["accuracy"]
    assert 0.3 < found["accuracy"] < whole["accuracy"] + 0.02
    assert found["file_bytes"] < 0.85 * whole["file_bytes"]
    assert (found["macs"] <= 0.5 * whole["macs"]) == (prune["name"] == "ranking")


def test_what_is_unknown_or_missing_is_named(tmp_path: Path) -> None:
    plan = {"network": "plain-16", "data": "cifar10-sample"}
    with pytest.raises(CdlibError, match="way 'statik'.*did you mean 'static'"):
        quantize_network({**plan, "way": {"name": "statik"}}, 0, tmp_path)
    with pytest.raises(CdlibError, match="'recipe' is missing"):
        quantize_network({**plan, "way": {"name": "train"}}, 0, tmp_path)
