"""The four arms are what they are called, and are timed together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdlib import edge
from cdlib.study import run, time_arms

pytest.importorskip("onnxruntime")


def test_four_arms_of_a_network_that_ships(tmp_path: Path) -> None:
    plan = {"network": "plain-16", "pruned": 0.5, "data": "cifar10-sample", "batch": 2, "threads": 1}
    found = run("edge", time_arms, {**plan, "runs": 5, "sustained": 0.05}, record_in=tmp_path)["metrics"]
    made = found["arms"]
    assert sorted(made) == [
        *("dense, eager", "dense, onnxruntime", "int8, onnxruntime", "pruned, eager", "pruned, int8, onnxruntime"),
        "pruned, onnxruntime",
    ]
    assert made["dense, eager"]["faster"] == [1.0, 1.0, 1.0]
    size = {name: arm["file_bytes"] for name, arm in made.items()}
    assert 1.7 < size["dense, onnxruntime"] / size["pruned, onnxruntime"] < 2.1  # of half the parameters
    assert size["dense, onnxruntime"] > 3 * size["int8, onnxruntime"]
    assert made["int8, onnxruntime"]["in_float"] == {} and made["dense, eager"]["peak_bytes"] > 0
    assert found["accuracy"]["dense"] > 0.8 and abs(found["accuracy"]["dense"] - found["accuracy"]["int8"]) < 0.02


def test_images_are_enlarged_for_a_network_with_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    bench = edge.bench
    monkeypatch.setattr(edge, "bench", lambda nets, x, **options: seen.append(x.shape) or bench(nets, x, **options))
    plan = {"network": "mobilenet_mini", "pruned": 0.5, "data": "cifar10-sample", "batch": 2, "threads": 1, "size": 48}
    found = time_arms({**plan, "runs": 2, "sustained": 0.01}, 0, tmp_path)
    assert seen == [(2, 3, 48, 48)] and found["accuracy"] == {} and len(found["arms"]) == 6
