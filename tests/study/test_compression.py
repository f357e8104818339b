"""A trained network becomes a file that meets bounds, by the least that does, also after it was stopped."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cdlib
from cdlib import CdlibError, data, edge, models, train
from cdlib.study import advise, compress

pytest.importorskip("onnxruntime")
DIGITS = data.load("digits")
QUICK: dict[str, Any] = {"epochs": 2, "progress": False, "amounts": (0.3, 0.6), "name": "net"}


def plain() -> nn.Sequential:
    """A network of 37,000 parameters."""
    sizes, layers = [1, 32, 48, 48], list[nn.Module]()
    for i, (m, n) in enumerate(pairwise(sizes)):
        layers += [nn.Conv2d(m, n, 3, padding=1, stride=1 + (i == 1)), nn.BatchNorm2d(n), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    recipe = train.Recipe(epochs=8, batch_size=64, optimizer="sgd", lr=0.05, weight_decay=5e-4)
    return train.fit(plain(), DIGITS, recipe, progress=False).model


@pytest.fixture(scope="module")
def int8(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What int8 alone gives."""
    return compress(net, DIGITS, tmp_path_factory.mktemp("int8"), min_accuracy=0.9, **QUICK)


def test_int8_is_enough_where_it_meets_the_bounds(int8: dict[str, Any]) -> None:
    assert int8["met"] and int8["chosen"] == "int8" and len(int8["rungs"]) == 1
    assert int8["rungs"][0]["file"] < 0.5 * int8["before"]["file"]
    assert int8["test"]["images"] == len(DIGITS.test) and int8["test"]["accuracy"] > 0.9
    low, high = int8["test"]["interval"]
    assert low < int8["test"]["accuracy"] < high
    by_class = int8["test"]["by class"]
    counts = torch.bincount(DIGITS.test.labels)
    assert list(by_class) == list(DIGITS.classes)
    mean = sum(share * int(n) for share, n in zip(by_class.values(), counts, strict=True)) / len(DIGITS.test)
    assert mean == pytest.approx(int8["test"]["accuracy"])


def small_enough(int8: dict[str, Any]) -> float:
    """Bytes that int8 alone does not meet, and a network of half of the parameters does."""
    return int8["rungs"][0]["file"] - 0.45 * int8["rungs"][0]["params"]


def test_the_least_cut_that_meets_the_bounds_is_taken(
    net: nn.Module, int8: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[nn.Module] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **options: fitted.append(args[0]) or fit(*args, **options))
    found = compress(net, DIGITS, tmp_path / "out", max_bytes=small_enough(int8), min_accuracy=0.8, **QUICK)
    assert found["met"] and found["chosen"] == "cut-60"
    first, second, third = found["rungs"]
    assert first["missed"] == {"file": pytest.approx(first["file"] / small_enough(int8) - 1)}
    assert second["accuracy"] is None and "file" in second["missed"] and len(fitted) == 1  # not trained in vain
    assert third["params"] == pytest.approx(0.4 * first["params"], rel=0.05) and third["resource"] == "params"
    assert any(layer.out_channels % 8 for layer in fitted[0].modules() if isinstance(layer, nn.Conv2d))
    out = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert out == ["network.onnx", "report.html", "report.json", "report.txt"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(found))
    file = edge.Deployed(tmp_path / "out" / "network.onnx")
    assert file.file.stat().st_size == third["file"] and file.card.classes == list(DIGITS.classes)
    right = file.logits(DIGITS.test.input(len(DIGITS.test)).numpy()).argmax(1) == DIGITS.test.labels.numpy()
    assert right.mean() == pytest.approx(found["test"]["accuracy"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 12 and "data:image/svg+xml" in page and "http" not in page
    text = " ".join((tmp_path / "out" / "report.txt").read_text().split())
    assert "cut-60 meets all bounds" in text and "not trained" in text


@pytest.mark.parametrize("when", ["training", "after"])
def test_a_run_that_was_stopped_goes_on_to_the_same_file(
    when: str, net: nn.Module, int8: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"max_bytes": small_enough(int8), "min_accuracy": 0.8, **QUICK}
    whole = compress(net, DIGITS, tmp_path / "whole", **asked)
    steps = len(DIGITS.train) // 128
    fit, done = train.fit, list[int]()

    def stopped(*args: Any, **options: Any) -> train.Fit:
        """Stop in the second of two epochs, or when training is over."""

        def step(number: int) -> None:
            done.append(number)
            if when == "training" and number == steps + 2:
                raise KeyboardInterrupt

        fitted = fit(*args, **options, after_step=step)
        raise KeyboardInterrupt if fitted else AssertionError

    monkeypatch.setattr(train, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress(net, DIGITS, tmp_path / "out", **asked)
    assert not (tmp_path / "out" / "report.json").exists()
    monkeypatch.setattr(
        train, "fit", lambda *args, **options: fit(*args, **options, after_step=lambda number: done.append(number))
    )
    count = len(done)
    again = compress(net, DIGITS, tmp_path / "out", **asked)
    assert len(done) - count == (steps if when == "training" else 0)  # the first epoch, or both, are not repeated
    files = [(tmp_path / name / "network.onnx").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1]
    for one, other in zip(whole["rungs"], again["rungs"], strict=True):
        assert {**one, "time": 0} == {**other, "time": 0}


def test_a_run_that_was_killed_while_its_plan_was_written_starts_over(net: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / f"plan.txt.{32 * 'a'}.tmp").write_text("half a pl")
    assert compress(net, DIGITS, tmp_path, min_accuracy=0.5, **QUICK)["met"]
    assert not (tmp_path / "work").exists()


def test_bounds_that_nobody_can_meet_give_the_nearest(net: nn.Module, tmp_path: Path) -> None:
    found = compress(net, DIGITS, tmp_path / "small", max_bytes=10, min_accuracy=0.5, **QUICK)
    assert not found["met"] and found["chosen"] == "cut-60"  # the smallest, and trained
    assert found["rungs"][-1]["accuracy"] is not None and found["rungs"][1]["accuracy"] is None
    assert "NOT ALL BOUNDS MET" in (tmp_path / "small" / "report.txt").read_text()
    found = compress(net, DIGITS, tmp_path / "sure", min_accuracy=1.0, **QUICK)
    if not found["met"]:  # a cut cannot help: it stops
        assert found["chosen"] == "int8" and len(found["rungs"]) == 1


def test_where_time_is_bounded_cuts_are_in_blocks_of_channels(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[nn.Module] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *args, **options: fitted.append(args[0]) or fit(*args, **options))
    found = compress(net, DIGITS, tmp_path / "out", max_ms=1e-6, min_accuracy=0.1, **{**QUICK, "amounts": (0.6,)})
    assert not found["met"] and "time" in found["rungs"][-1]["missed"]
    assert all(layer.out_channels % 8 == 0 for layer in fitted[0].modules() if isinstance(layer, nn.Conv2d))


def test_a_device_sets_bounds_of_its_own(net: nn.Module, tmp_path: Path) -> None:
    figures = {"ram_bytes": 3000, "storage_bytes": 1e6, "macs_int8": 1e9, "bandwidth": 1e9, "storage_bandwidth": 1e9}
    tiny = edge.Device("tiny", "Tiny", **{name: edge.Figure(value, "here") for name, value in figures.items()})
    found = compress(net, DIGITS, tmp_path, device=tiny, min_accuracy=0.3, **QUICK)
    assert set(found["limits"]) == {"accuracy", "ram", "storage"} and found["limits"]["ram"] == 3000
    assert found["rungs"][0]["missed"].keys() == {"ram"} and found["rungs"][1]["resource"] == "activation_bytes"
    counted = cdlib.profile(net, DIGITS.test.input(1))
    assert found["rungs"][0]["time"] == pytest.approx(edge.roofline(counted, tiny, "int8").latency_ms)
    assert "estimated" in found["time is"]


def test_bad_input_is_one_line_before_any_work(net: nn.Module, int8: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    compress(net, DIGITS, kept, min_accuracy=0.5, keep=True, **QUICK)
    blocked = tmp_path / "file"
    blocked.write_text("")
    wide = models.trained("plain-16")
    sample = data.load("cifar10-sample")
    for act, message in {
        lambda: compress(net, DIGITS, blocked / "out", **QUICK): "cannot write to",
        lambda: compress(net, DIGITS, kept, min_accuracy=0.5, **QUICK): "holds a result",
        lambda: compress(net, DIGITS, kept, min_accuracy=0.6, force=True, **QUICK): "work of another run",
        lambda: compress(net, DIGITS, tmp_path / "a", max_bytes=-1, **QUICK): "the bound of file is -1",
        lambda: compress(net, DIGITS, tmp_path / "a", min_accuracy=90, **QUICK): "the bound of accuracy is 90",
        lambda: compress(net, DIGITS, tmp_path / "a", **{**QUICK, "amounts": (1.0,)}): "amount=1.0 is no share",
        lambda: compress(net, sample, tmp_path / "a", **QUICK): "cannot take an input",
        lambda: compress(nn.Sequential(net, nn.Linear(10, 3)), DIGITS, tmp_path / "a", **QUICK): "3 outputs",
        lambda: compress(wide, shifted(sample), tmp_path / "a", **QUICK): "takes images normalised by",
        lambda: advise(cdlib.profile(net, DIGITS.test.input(1)), short="hair"): "unknown short 'hair'",
    }.items():
        with pytest.raises(CdlibError, match=message) as error:
            act()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()
    again = compress(net, DIGITS, kept, min_accuracy=0.5, force=True, **QUICK)  # from what was kept
    assert again["rungs"] == json.loads((kept / "report.json").read_text())["rungs"]


def shifted(dataset: data.Dataset) -> data.Dataset:
    parts = [(s.images.numpy(), s.labels.numpy()) for s in (dataset.train, dataset.test)]
    return data.from_arrays("other", dataset.classes, *parts, True, ((0.1, 0.1, 0.1), (0.5, 0.5, 0.5)))  # type: ignore[arg-type]


def test_advice_follows_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = cdlib.profile(models.trained("plain-16"), torch.zeros(1, 3, 32, 32))
    own = advise(counted, names=["plain-16"])
    table = own.evidence
    assert table["network"].iloc[0] == "plain-16"
    shown = cdlib.study.load(experiment="quantization")
    wanted = shown[shown["network"].eq("resnet-mini") & shown["way.name"].eq("static")]["accuracy"].mean() - 0.8787
    row = table[table["network"].eq("resnet-mini") & table["way"].eq("int8")].iloc[0]
    assert row["change"] == pytest.approx(100 * wanted) and row["runs"] >= 3
    assert any("resnet-mini" in reason and "runs" in reason for reason in own.reasons)
    assert advise(counted, edge.device("esp32-s3")).resource == "params"  # int8 weights come slowly from its flash
    assert advise(counted, short="ram").resource == "activation_bytes"
    assert np.isfinite(table["change"]).all()
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path))
    nothing = advise(counted)
    assert nothing.evidence.empty and nothing.resource == "macs" and "no record" in nothing.reasons[0]


def test_files_that_are_not_its_own_stay(net: nn.Module, tmp_path: Path) -> None:
    """A refusal makes and changes nothing; `force` replaces what the run writes, and deletes nothing else."""

    def held() -> dict[str, str]:
        return {str(path): path.read_text() if path.is_file() else "" for path in tmp_path.rglob("*")}

    for name in ("mine/work/thesis.txt", "report/report.txt", "net/network.onnx", "web/report.html"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
    before = held()
    for name, message in {
        "report": "report.txt: give",
        "net": "network.onnx: give",
        "web": "report.html: give",
    }.items():
        with pytest.raises(CdlibError, match=message):
            compress(net, DIGITS, tmp_path / name, min_accuracy=0.5, **QUICK)
    for force in (False, True):
        with pytest.raises(CdlibError, match="or your own: move it"):
            compress(net, DIGITS, tmp_path / "mine", min_accuracy=0.5, force=force, **QUICK)
    assert held() == before
    compress(net, DIGITS, tmp_path / "report", min_accuracy=0.5, keep=True, force=True, **QUICK)
    notes = [tmp_path / "report" / "work" / name for name in ("thesis.txt", "int8.txt", "cut-plan.json")]
    for note in notes:
        note.write_text("mine")
    compress(net, DIGITS, tmp_path / "report", min_accuracy=0.5, force=True, **QUICK)
    assert sorted((tmp_path / "report" / "work").iterdir()) == sorted(notes)
    assert (tmp_path / "report" / "report.txt").read_text() != "mine"


def test_a_run_without_a_folder_of_records_makes_none_of_its_own(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CDLIB_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CdlibError, match="no results folder"):
        compress(net, DIGITS, tmp_path / "out", min_accuracy=0.5, **QUICK)
    assert not list(tmp_path.iterdir())
