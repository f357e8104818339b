"""What is written for ExecuTorch computes there what the network computes; without the package it is one clear line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import cdlib
from cdlib import CdlibError, data, models
from cdlib.cli.app import app
from cdlib.edge import bench, export, pte_files
from cdlib.quantization import QuantizedSum, static

needed = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="an extra that is not installed: pip install executorch"
)
SAMPLE = data.load("cifar10-sample")


@needed
@pytest.mark.parametrize("batch", [1, 3])
def test_a_float_network_computes_the_same_in_batches_of_its_size(batch: int, tmp_path: Path) -> None:
    net, images = models.trained("plain-16"), SAMPLE.test.input(7)
    assert export(net, images, tmp_path / "net.pte", batch=batch) < 1e-4
    found = pte_files.outputs(tmp_path / "net.pte", images, batch)
    with torch.no_grad():
        assert np.allclose(found, net(images).numpy(), atol=1e-4)
    with pytest.raises(CdlibError, match=rf"for \[{batch}, 3, 32, 32\]; .* cannot run it on \[2, 3, 32, 32\]"):
        pte_files.loaded(tmp_path / "net.pte", 1)(images[:2])


@needed
def test_so_does_a_cut_one_and_the_file_shrinks(tmp_path: Path) -> None:
    net, images = models.trained("resnet-mini"), SAMPLE.test.input(8)
    groups = cdlib.find_groups(net, images[:1])
    cut = cdlib.remove(net, groups, {group.name: range(group.size // 2) for group in groups.prunable})
    assert export(cut, images, tmp_path / "cut.pte") < 1e-4
    export(net, images, tmp_path / "net.pte")
    assert 2 * (tmp_path / "cut.pte").stat().st_size < (tmp_path / "net.pte").stat().st_size


@needed
@pytest.mark.parametrize("name", ["plain-16", "resnet-mini"])
def test_a_network_of_integers_gives_the_same_classes_and_logits_to_a_step(name: str, tmp_path: Path) -> None:
    quantized = static(models.trained(name), SAMPLE.train.sample(100, 0))
    assert any(isinstance(module, QuantizedSum) for module in quantized.modules()) == (name == "resnet-mini")
    assert export(quantized, SAMPLE.test.input(100), tmp_path / "net.pte") < 1.1
    weights = sum(layer.weight().numel() for layer in quantized.layers().values())
    content = (tmp_path / "net.pte").read_bytes()
    assert len(content) < 1.3 * weights and b"site-packages" not in content  # a byte a weight, no path of this machine


@needed
def test_what_two_layers_read_behind_pooling_stays_in_integers(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = torch.nn.functional.max_pool2d(self.first(x).relu(), 2)
            return (self.one(pooled) + self.other(pooled)).flatten(1)

    torch.manual_seed(0)
    images = torch.randn(20, 3, 16, 16)
    assert export(static(Net(), images), images, tmp_path / "net.pte") < 1.1


@needed
def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, file = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)), tmp_path / "net.pte"
    file.write_bytes(b"before")
    images = torch.randn(8, 3, 8, 8)
    with pytest.raises(CdlibError, match="outputs differ"):
        export(net, images, file, tolerance=0.0)
    quantized = static(net, images)
    real = type(quantized).forward
    monkeypatch.setattr(type(quantized), "forward", lambda self, x: -real(self, x))
    with pytest.raises(CdlibError, match="executorch agrees with the network on"):
        export(quantized, images, file)
    assert file.read_bytes() == b"before"


@needed
def test_mistakes_are_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Doubtful(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.max() > 2 else -x.flatten(1)

    card = models.Card("net", ["a", "b"], [3, 32, 32], [0.5] * 3, [0.5] * 3)
    two = SAMPLE.test.input(2)
    (tmp_path / "spoilt.pte").write_bytes(b"nothing")
    for act, message in {
        lambda: export(Doubtful(), two, tmp_path / "net.pte"): "cannot be exported to ExecuTorch: .*data-dependent",
        lambda: export(Doubtful(), two, tmp_path / "net.pte", batch=0): "batch=0",
        lambda: export(Doubtful(), two, tmp_path / "net.pte", card=card): "no room for a card",
        lambda: bench({"net": tmp_path / "spoilt.pte"}, two, engines=["executorch"]): "ExecuTorch can run",
        lambda: bench({"net": tmp_path / "spoilt.pte"}, two): "nothing to measure",
    }.items():
        with pytest.raises(CdlibError, match=message) as error:
            act()
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert "Traceback" not in capfd.readouterr().err


@needed
def test_it_is_an_engine(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    images = torch.randn(2, 3, 8, 8)
    export(net, images, tmp_path / "net.pte", batch=2)
    given = {"module": net, "file": tmp_path / "net.pte"}
    found = bench(given, images, engines=["eager", "executorch"], runs=3, sustained=0.02)
    assert [*found.arms] == ["module, eager", "module, executorch", "file, executorch"]
    arm = found.arms["file, executorch"]
    assert (
        arm.file_bytes == (tmp_path / "net.pte").stat().st_size and (arm.load_ms or 0) > 0 and (arm.first_ms or 0) > 0
    )
    words = ["bench", str(tmp_path / "net.pte"), "--engine", "executorch", "--input", "3x8x8", "--batch", "2"]
    run = CliRunner().invoke(app, [*words, "--runs", "3", "--sustained", "0.02", "--json"])
    assert run.exit_code == 0 and list(json.loads(run.stdout)["arms"]) == ["net, executorch"]


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("executorch", "executorch.runtime", "executorch.extension.pybindings"):
        monkeypatch.setitem(sys.modules, name, None)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(2, 3, 2, 2)
    (tmp_path / "net.pte").write_bytes(b"")
    for act in (
        lambda: export(net, images, tmp_path / "other.pte"),
        lambda: bench({"net": net}, images, engines=["executorch"]),
        lambda: bench({"net": tmp_path / "net.pte"}, images, engines=["executorch"]),
    ):
        with pytest.raises(CdlibError, match="executorch is not installed: pip install executorch") as error:
            act()
        assert "\n" not in str(error.value)
