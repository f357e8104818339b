"""`cdlib quantize`: what it writes, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cdlib
from cdlib import data, models
from cdlib.cli.app import app
from cdlib.train import Recipe, evaluate, fit


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["quantize", *arguments])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = models.build("vgg_mini", 10, in_channels=1)
    fit(model, data.load("digits"), Recipe(epochs=3, batch_size=64, lr=3e-3, augment=False), progress=False)
    cdlib.save(model, "vgg.cdlib")
    return model


def test_what_is_written_is_what_is_said(trained: Any) -> None:
    done = run("vgg.cdlib", "--data", "digits", "-o", "small.cdlib", "--bits", "4", "--keep", "classifier.3", "--json")
    assert done.exit_code == 0, done.output
    found, test = json.loads(done.stdout), data.load("digits").test
    small = cdlib.load("small.cdlib")
    assert found["accuracy"]["before"] == evaluate(trained, test).accuracy
    assert found["accuracy"]["after"] == evaluate(small, test).accuracy
    assert set(found["bits"].values()) == {4} and found["in_float"] == {"classifier.3": "kept by name"}
    assert found["file_bytes"] == Path("small.cdlib").stat().st_size < 0.3 * Path("vgg.cdlib").stat().st_size
    assert found["weight_bytes"]["after"] == cdlib.profile(small, test.input(1)).weight_bytes
    text = run("vgg.cdlib", "--data", "digits", "-o", "small.cdlib", "--force", "--keep", "classifier.3").stdout
    assert "classifier.3 stays in float32: kept by name" in text and "wrote small.cdlib" in text


def test_a_runtime_reads_what_ends_in_onnx(trained: Any) -> None:
    ort = pytest.importorskip("onnxruntime")
    assert run("vgg.cdlib", "--data", "digits", "-o", "small.onnx").exit_code == 0
    session, test = ort.InferenceSession("small.onnx"), data.load("digits").test
    [logits] = session.run(None, {session.get_inputs()[0].name: test.input(len(test)).numpy()})
    assert (logits.argmax(1) == test.labels.numpy()).mean() > evaluate(trained, test).accuracy - 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bits", "9"), "--bits=9: give an integer of at most 8"),
        (("--ranges", "max"), "'max'"),
        (("--images", "0"), "--images=0"),
        (("--keep", "head"), "layer 'head'"),
        (("-o", "none/small.cdlib"), "there is no folder none"),
        (("-o", "vgg.cdlib"), "vgg.cdlib exists"),
        (("--data", "cifar"), "'cifar'"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(arguments: tuple[str, ...], message: str, trained: Any) -> None:
    done = run("vgg.cdlib", "--data", "digits", "-o", "small.cdlib", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not Path("small.cdlib").exists()
