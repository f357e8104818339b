"""`cdlib quantize`: what it writes, what it says of it, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cdlib
from cdlib import data, edge, models
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


def test_a_network_that_ships_becomes_a_file_that_a_camera_can_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    done = run("plain-16", "--data", "cifar10-sample", "-o", "small.onnx", "--json")
    assert done.exit_code == 0, done.output
    sample = data.load("cifar10-sample")
    net, made_by = edge.Deployed("small.onnx"), getattr(models.trained("plain-16"), models.CARD)
    assert net.card == replace(made_by, record="", accuracy=None, model="", options={}, data="cifar10-sample")
    right = net.logits(sample.test.input(len(sample.test)).numpy()).argmax(1) == sample.test.labels.numpy()
    assert right.mean() == pytest.approx(json.loads(done.stdout)["accuracy"]["after"], abs=0.002)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plain-16", "--data", "digits"), "plain-16 takes images normalised by"),
        (("plain-16", "--data", "cifar10-sample", "--option", "width=3"), "leave out --option"),
        (("plain-61", "--data", "cifar10-sample"), "unknown model 'plain-61'"),
    ],
)
def test_a_network_that_ships_is_whole(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, "-o", "small.onnx")
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1


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


def test_a_full_disk_is_one_line_that_names_the_file(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    before = sorted(Path().iterdir())
    asked = ("vgg.cdlib", "--data", "digits", "-o")
    done = run(*asked, name := 240 * "n" + ".onnx")  # the name of the temporary file is too long
    assert done.exit_code == 2 and done.stderr == f"error: {name}: File name too long.\n", done.output

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    samples = CliRunner().invoke(app, ["print-samples", "--data", "digits", "-o", "small.pdf"])
    for done, name in ((run(*asked, "small.onnx"), "small.onnx"), (samples, "small.pdf")):
        assert done.exit_code == 2 and done.stderr == f"error: {name}: No space left on device.\n", done.output
    monkeypatch.setattr(edge, "print_samples", full)  # elsewhere than in the file: no name
    samples = CliRunner().invoke(app, ["print-samples", "--data", "digits", "-o", "small.pdf"])
    assert samples.exit_code == 2 and samples.stderr == "error: a temporary file: No space left on device.\n"
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", ["small.txt", "small", "small.pte", "small.onnx.gz"])
def test_a_name_that_says_no_format_is_refused_before_any_work(name: str) -> None:
    done = run("no-network", "--data", "no-data", "-o", name)
    assert done.exit_code == 2 and f"{name} says no format" in done.stderr and done.stderr.count("\n") == 1
    done = CliRunner().invoke(app, ["prune", "no-network", "--ratio", "0.5", "-o", "small.onnx"])
    assert done.exit_code == 2 and "small.onnx says no format" in done.stderr


def test_endings_mean_the_same_in_capitals(trained: Any) -> None:
    pytest.importorskip("onnxruntime")
    for name in ("A.ONNX", "B.CDLIB"):
        done = run("vgg.cdlib", "--data", "digits", "-o", name)
        assert done.exit_code == 0, done.output
    assert edge.Deployed("A.ONNX").card.classes == list(data.load("digits").classes)
    for arguments in (
        ["bench", "A.ONNX", "--runs", "2", "--sustained", "0.01"],
        ["profile", "B.CDLIB", "--input", "1x8x8"],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output


CUSTOM = """
from torch import nn

class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1), x

def three_classes():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def two_outputs():
    return nn.Sequential(nn.Conv2d(1, 10, 3), Two())
"""


@pytest.mark.parametrize("ending", ["onnx", "cdlib"])
@pytest.mark.parametrize(
    ("function", "message"), [("three_classes", "3 outputs, but digits 10 classes"), ("two_outputs", "tuple")]
)
def test_a_network_of_other_outputs_is_refused_before_writing(
    function: str, message: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.py").write_text(CUSTOM)
    done = run(f"file.py:{function}", "--data", "digits", "-o", f"small.{ending}")
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not Path(f"small.{ending}").exists()
