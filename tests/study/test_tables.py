"""Records as tables: what is in them, in which words, with means and spreads computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cdlib.study import above, networks, recorded, store, summary, uniform_line


def add(results: Path, seed: int, method: dict[str, Any], *, model: str = "vgg_mini", **changed: Any) -> None:
    """Write a record with as much in it as the tables read."""
    recipe = {"epochs": 10, "lr": 0.1} | changed.pop("recipe", {})
    parameters = {"data": "cifar10", "model": model, "options": {}, "recipe": recipe, "method": method}
    metrics = {"accuracy": 0.8, "params": 50, "macs": 30, "latency_p50_ms": 2.0}
    metrics |= {"dense_params": 200, "dense_macs": 300, "dense_latency_p50_ms": 1.0, **changed}
    provenance = dict.fromkeys(store.ORIGIN) | {"machine": {"cpu": "x"}, "dirty": False, "date": "2026-01-01"}
    whole = {"key": store.key("pruning", parameters, seed), "experiment": "pruning", "parameters": parameters}
    store.write(whole | {"seed": seed, "metrics": metrics, "wall_s": 1.0, "provenance": provenance}, results)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    return tmp_path


def test_records_have_shares_of_the_dense_network_and_every_column(results: Path) -> None:
    add(results, 0, {"name": "hesso", "target": 0.5})
    add(results, 0, {"name": "dense"})
    found = recorded("pruning", ["hesso"])
    assert found[["params left", "macs left", "latency left"]].iloc[0].tolist() == [0.25, 0.1, 2.0]
    assert found["setting"].tolist() == ["hesso, 50 % fewer units"]
    assert found["method.budget"].isna().all() and len(recorded("pruning")) == 2


def test_no_records_are_an_empty_table() -> None:
    found = recorded("pruning", ["hesso"])
    assert not len(found) and {"setting", "method.name", "accuracy", "macs left"} <= {*found}
    assert networks(found) == {} and not len(summary(found, "setting", {"accuracy": ("accuracy", 1, 0)}))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "dense"}, "dense"),
        ({"name": "dense", "fine_tune": {"epochs": 4, "lr": 0.01}}, "dense, 4 more epochs"),
        ({"name": "dense", "fine_tune": {"epochs": 4, "lr": 0.1}}, "dense, 4 more epochs at the full rate"),
        ({"name": "uniform_width", "mode": "PA", "target": 0.5}, "uniform width, 50 % fewer parameters"),
        (
            {"name": "uniform_width", "mode": "FA", "target": 0.75, "budget": "dense"},
            "uniform width, 75 % fewer MACs, Scratch-B",
        ),
        (
            {"name": "complexity_driven", "mode": "PA", "target": 0.5, "stop_at": "activation_bytes"},
            "complexity driven by PA, 50 % fewer activations",
        ),
        ({"name": "ranking", "by": "l2", "target": 0.5, "resource": "macs"}, "ranking, L2, 50 % fewer MACs"),
        (
            {"name": "dhspg", "target": 0.7, "penalty": 1.0, "min_width": 4},
            "dhspg, 70 % fewer units, penalty 1, min_width 4",
        ),
        (
            {"name": "unstructured", "by": "random", "conv": 0.9, "linear": 0.8},
            "unstructured, random, 90 % of conv, 80 % of linear",
        ),
    ],
)
def test_methods_in_words(results: Path, method: dict[str, Any], words: str) -> None:
    add(results, 0, method)
    assert recorded("pruning")["setting"].tolist() == [words]


def test_what_was_trained_alike_is_one_network(results: Path) -> None:
    for seed in (0, 1):
        add(results, seed, {"name": "dense"})
    add(results, 0, {"name": "dense"}, recipe={"lr": 0.2})
    add(results, 0, {"name": "dense"}, recipe={"epochs": 3}, model="resnet_mini")
    found = {title: len(part) for title, part in networks(recorded("pruning")).items()}
    assert found == {
        "resnet_mini, cifar10, 3 epochs": 1,
        "vgg_mini, cifar10, 10 epochs": 2,
        "vgg_mini, cifar10, 10 epochs, recipe 2": 1,
    }


def test_means_and_spreads_over_the_seeds() -> None:
    runs = pd.DataFrame(
        {
            "arm": ["b", "a", "b"],
            "left": [None, 1.0, None],
            "accuracy": [0.5, 0.9, 0.7],
            "macs": [10, 20, 10],
            "forced": [float("nan")] * 3,
        }
    )
    columns = {"accuracy (%)": ("accuracy", 100, 1), "MACs": ("macs", 0.5, 0), "forced": ("forced", 1, 0)}
    found = summary(runs, ["arm", "left"], columns | {"speed": ("speed", 1, 0)}, count="runs")
    assert list(found) == ["runs", "accuracy (%)", "MACs", "forced", "speed"]
    assert found.index.names == ["arm", "left"] and [name for name, _ in found.index] == ["b", "a"]
    # 0.5 and 0.7: half of their difference times the root of two
    assert found.iloc[0].tolist() == [2, "60.0\u00a0±\u00a014.1", "5", "-", "-"]
    assert found.iloc[1].tolist() == [1, "90.0", "10", "-", "-"]
    assert list(summary(runs, "arm", columns).index) == ["b", "a"]


def test_the_line_is_made_of_what_was_trained_once(results: Path) -> None:
    wide = {"name": "uniform_width", "mode": "PA", "target": 0.5}
    add(results, 0, {"name": "dense"}, accuracy=0.9, params=200)
    add(results, 0, wide, accuracy=0.7, params=50)
    for other in (wide | {"budget": "dense"}, wide | {"min_width": 4}, {"name": "hesso", "target": 0.5}):
        add(results, 0, other, accuracy=0.85, params=100)
    add(results, 0, {"name": "dense", "fine_tune": {"epochs": 4, "lr": 0.01}}, accuracy=0.99, params=200)
    found = recorded("pruning")
    line = uniform_line(found)
    assert sorted(line["params"]) == [50, 200]
    hesso = found[found["method.name"] == "hesso"]
    assert above(hesso, line, "params").tolist() == pytest.approx([5.0])  # the line is at 0.8 in the middle
