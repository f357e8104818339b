"""The records of the book: each is whole and has the key of its parameters, and the sweep still means the same runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cdlib.study import load, store, sweeps

RESULTS = Path(__file__).parents[2] / "results"
FILES = sorted(RESULTS.glob("*/*.json"))


def test_every_record_is_readable_under_the_key_of_its_parameters() -> None:
    assert Counter(path.parent.name for path in FILES) >= Counter(baseline=3, pruning=150, zoo=169)
    for path in FILES:
        record = store.read(path)
        assert path.stem == store.key(record["experiment"], record["parameters"], record["seed"])
        assert store.find(record["experiment"], record["parameters"], record["seed"], RESULTS) == record
    assert sorted(load(RESULTS).index) == sorted(path.stem for path in FILES)


LENGTHS = {"plain_cnn": {"epochs": 18, "runs": 50}}


def test_every_recorded_run_of_the_sweep_is_a_run_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = SimpleNamespace(train=SimpleNamespace(images=torch.zeros(1, 3, 1, 1)))
    monkeypatch.setattr(sweeps, "load", lambda name: colour)
    seeds = {store.read(path)["seed"] for path in FILES if path.parent.name == "pruning"}
    known = {
        store.key(sweeps.EXPERIMENT, plan, seed)
        for model in sweeps.RECIPES
        for plan in sweeps.plans(model, data="cifar10", **LENGTHS.get(model, {"epochs": 10}))
        for seed in seeds
    }
    assert {path.stem for path in FILES if path.parent.name == sweeps.EXPERIMENT} <= known
