"""Records of few bits in words, and paired verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdlib.study import paired_verdict, quantized, run

TUNE = {"epochs": 4, "lr": 0.002}
CUT = {"name": "ranking", "by": "l2", "target": 0.5, "resource": "params"}
RUNS: list[tuple[dict[str, Any], int, float]] = [
    ({"way": {"name": "float"}}, 0, 0.84),
    ({"way": {"name": "static"}}, 0, 0.83),
    ({"way": {"name": "static", "bits": 8}}, 1, 0.85),
    ({"way": {"name": "static", "bits": 4, "per_channel": False}}, 0, 0.5),
    ({"way": {"name": "train", "bits": 4, "recipe": TUNE}}, 0, 0.8),
    ({"way": {"name": "train", "bits": 4, "recipe": {**TUNE, "flips": "random"}}}, 0, 0.81),
    ({"way": {"name": "search", "bits": 3}}, 0, 0.7),
    ({"way": {"name": "float"}, "prune": {**CUT, "recipe": {**TUNE, "distill": 0.5}}}, 0, 0.82),
]


@pytest.fixture(autouse=True)
def _recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    for plan, seed, accuracy in RUNS:
        run("quantization", lambda *_, a=accuracy: {"accuracy": a}, {"network": "n", "data": "d", **plan}, seed=seed)


def test_what_was_done_is_said_in_words() -> None:
    found = quantized()
    assert sorted(found["setting"]) == [
        "dense, controller, 3 bits",
        "dense, float",
        "dense, int4 trained, +4 epochs at 0.002",
        "dense, int4 trained, +4 epochs at 0.002 (2)",
        "dense, int4, per_channel False",
        "dense, int8",
        "dense, int8",  # the default and 8 bits are the same
        "ranking, L2, 50 % fewer parameters +4 epochs at 0.002 with a teacher, float",
    ]
    assert set(quantized("static")["way.name"]) == {"static"}


def test_a_verdict_is_on_pairs_only() -> None:
    found = quantized()
    float_, int8 = found[found["numbers"] == "float"], found[found["numbers"] == "int8"]
    dense = float_[float_["pruning"] == "dense"]
    same_seed = paired_verdict(int8, dense, ["network", "seed"], margin=0.5)
    shipped = paired_verdict(int8, dense, ["network"], margin=0.5)
    assert same_seed is not None and (same_seed.n, same_seed.mean) == (1, pytest.approx(-1))
    assert shipped is not None and (shipped.n, shipped.mean) == (2, pytest.approx(0))
    assert paired_verdict(int8, dense.assign(seed=7), ["seed"], margin=0.5) is None
