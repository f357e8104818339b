"""`cdlib compress`, `advise` and `devices` as a user types them."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cdlib import data, files, models, train
from cdlib.cli.app import app

pytest.importorskip("onnxruntime")
DIGITS = ("--data", "digits")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = models.build("vgg_mini", in_channels=1)
    train.fit(net, data.load("digits"), train.Recipe(epochs=2, batch_size=64, lr=3e-3), progress=False)
    torch.save(net.state_dict(), file := tmp_path_factory.mktemp("weights") / "net.pt")
    return file


def test_compress_ends_with_0_or_with_1_and_the_nearest(weights: Path, tmp_path: Path) -> None:
    given = ("compress", "vgg_mini", *DIGITS, "--weights", str(weights), "--epochs", "1")
    done = run(*given, "--min-accuracy", "0.5", "-o", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    assert "vgg_mini: int8 meets all bounds" in done.stdout
    assert (tmp_path / "a" / "network.onnx").exists()
    again = run(*given, "-o", str(tmp_path / "a"))
    assert again.exit_code == 2 and "holds a result" in again.stderr
    missed = run(*given, "--min-accuracy", "1", "-o", str(tmp_path / "b"), "--json")
    assert missed.exit_code == 1
    found = json.loads(missed.stdout)
    assert not found["met"] and found["chosen"] == "int8" and (tmp_path / "b" / "network.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compress", "vgg_mini", *DIGITS, "-o", "out"), "has random weights"),
        (("compress", "plain-16", *DIGITS, "-o", "out", "--device", "raspberry"), "unknown device 'raspberry'"),
        (("compress", "plain-16", *DIGITS, "-o", "out"), "cannot take an input"),
        (
            ("compress", "plain-16", *DIGITS, "-o", "out", "--option", "width=3"),
            "leave out --option",
        ),
        (("compress", "plain", *DIGITS, "-o", "out"), "unknown model 'plain'"),
        (("compress", "plain-16", "--data", "cifar10-sample", "-o", "/dev/null/out"), "cannot write to /dev/null/out"),
        (("compress", "plain-16", *DIGITS, "-o", "out", "--max-mb", "-1"), "--max-mb=-1: give"),
        (("compress", "plain-16", *DIGITS, "-o", "out", "--max-ms", "inf"), "--max-ms=inf: give"),
        (("compress", "plain-16", *DIGITS, "-o", "out", "--min-accuracy", "nan"), "--min-accuracy=nan: give"),
        (("advise", "nothing", *DIGITS), "'nothing'"),
        (("advise", "plain-16", "--data", "cifar10-sample", "--margin", "0"), "margin=0"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(tmp_path / "out") if argument == "out" else argument for argument in arguments]
    done = run(*given)
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not (tmp_path / "out").exists()


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it fills up: the earlier result stays whole, and the next run goes on from there."""
    given = ("compress", "vgg_mini", *DIGITS, "--weights", str(weights), "-o", str(tmp_path))
    assert run(*given, "--min-accuracy", "0.5").exit_code == 0
    before, atomic, filled = content(tmp_path), files.atomic, list[str]()

    @contextlib.contextmanager
    def full(path: Path, **options: Any) -> Iterator[Any]:
        with atomic(path, **options) as file:
            if path.name == filled[-1]:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield file

    monkeypatch.setattr(files, "atomic", full)
    for name in ("plan.txt", "int8.onnx", "int8.json", "float.onnx", "report.json", "report.html", "network.onnx"):
        filled.append(name)
        done = run(*given, "--min-accuracy", "0.4", "--force")
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
        assert "No space left on device" in done.stderr and str(tmp_path) in done.stderr
        after = content(tmp_path)
        assert {path: after[path] for path in before} == before and not [*tmp_path.rglob("*.tmp")]
        assert {path.parts[0] for path in {*after} - {*before}} <= {"work"}
    monkeypatch.undo()
    assert run(*given, "--min-accuracy", "0.4", "--force").exit_code == 0
    assert {*content(tmp_path)} == {*before} and content(tmp_path) != before


def test_advise_says_its_reasons() -> None:
    said = run("advise", "plain-16", "--data", "cifar10-sample", "--device", "esp32-s3")
    assert said.exit_code == 0 and "Espressif ESP32-S3" in said.stdout and "Recorded for int8" in said.stdout
    found = json.loads(run("advise", "plain-16", "--data", "cifar10-sample", "--json").stdout)
    assert found["evidence"][0]["network"] == "plain-16" and found["reasons"]


def test_devices_lists_cards_with_their_sources() -> None:
    assert "raspberry-pi-5" in run("devices").stdout
    cards = json.loads(run("devices", "--json").stdout)
    assert cards["jetson-orin-nano"]["bandwidth"]["value"] == 68e9
    assert all(figure["source"] for card in cards.values() for key, figure in card.items() if key != "title")
