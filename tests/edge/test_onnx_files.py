"""What is written as ONNX computes in onnxruntime what the network computes, in integers to the bit or nearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cdlib
from cdlib import CdlibError, data, models
from cdlib.edge import export
from cdlib.quantization import QuantizedSum, static
from cdlib.report import instructions

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
SAMPLE = data.load("cifar10-sample")
FAMILIES: dict[str, dict[str, Any]] = {
    "plain_cnn": {},
    "vgg_mini": {},
    "resnet_mini": {},
    "mobilenet_mini": {},
    "convnext_mini": {"layer_scale": 0.1},
    "efficientnet_lite0": {"input_size": 64},
}


FUSED = {"avx2", "fma"} <= {*(instructions() or ())}  # products and sums in one


def lively(name: str) -> nn.Module:
    """A network whose batch norms have seen images."""
    torch.manual_seed(0)
    net = models.build(name, **FAMILIES[name])
    with torch.no_grad():
        for seed in range(3):
            net(SAMPLE.train.sample(64, seed).input(64))
    return net.eval()


def session(file: Path) -> Any:
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(file.with_suffix(".opt")), 3
    return ort.InferenceSession(file, options)


@pytest.mark.parametrize("name", FAMILIES)
def test_integers_in_a_runtime_give_the_same_classes_and_logits_to_few_steps(name: str, tmp_path: Path) -> None:
    quantized, images = static(lively(name), SAMPLE.train.sample(100, 1)), SAMPLE.test.input(200)
    difference = export(quantized, images, tmp_path / "net.onnx")
    assert difference <= (
        6 if name == "convnext_mini" else 0 if FUSED else 3
    )  # ConvNeXt: layer norm and GELU in float32
    with torch.no_grad():
        wanted = quantized(images).argmax(1).numpy()
    running = session(tmp_path / "net.onnx")
    [found] = running.run(None, {running.get_inputs()[0].name: images.numpy()})
    assert (found.argmax(1) == wanted).mean() >= (0.99 if name == "convnext_mini" else 0.999)
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.opt").graph.node]
    convs = sum(isinstance(m, nn.Conv2d) for m in quantized.modules())
    assert kinds.count("QLinearConv") == convs and "Conv" not in kinds


@pytest.mark.skipif(not FUSED, reason="other processors round sums otherwise")
def test_residual_sums_have_the_same_bits_in_a_runtime(tmp_path: Path) -> None:
    """In float32 without fused products, one image in fifty is two steps off."""
    quantized = static(models.trained("resnet-mini"), SAMPLE.train.sample(200, 0))
    assert sum(isinstance(module, QuantizedSum) for module in quantized.modules()) > 5
    assert export(quantized, SAMPLE.test.input(400), tmp_path / "net.onnx") == 0.0


def test_a_sum_with_a_factor_stays_in_float32() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(self.one(x), self.other(x), alpha=2)

    net, x = Net().eval(), torch.randn(20, 3, 8, 8)
    quantized = static(net, x)
    assert not any(isinstance(module, QuantizedSum) for module in quantized.modules())
    with torch.no_grad():
        assert (quantized(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_the_workhorse_has_the_same_bits_in_a_runtime(tmp_path: Path) -> None:
    quantized = static(models.trained("plain-16"), SAMPLE.train.sample(200, 0))
    assert export(quantized, SAMPLE.test.input(1000), tmp_path / "net.onnx") == 0.0
    weights = sum(layer.weight().numel() for layer in quantized.layers().values())
    content = (tmp_path / "net.onnx").read_bytes()
    assert len(content) < 1.25 * weights and b"onnx_files" not in content  # no source and no path of this machine
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert sum(array.size for array in held.values() if array.dtype == np.int8) >= weights


def test_a_cut_float_network_is_written_for_any_batch_size(tmp_path: Path) -> None:
    net, x = lively("resnet_mini"), SAMPLE.test.input(8)
    groups = cdlib.find_groups(net, x[:1])
    small = cdlib.remove(net, groups, {group.name: range(group.size // 2) for group in groups.prunable})
    assert export(small, x, tmp_path / "net.onnx") < 1e-4
    running = session(tmp_path / "net.onnx")
    for n in (1, 5):
        [found] = running.run(None, {running.get_inputs()[0].name: x[:n].numpy()})
        with torch.no_grad():
            assert np.allclose(found, small(x[:n]).numpy(), atol=1e-4)


def test_what_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = lively("vgg_mini"), SAMPLE.test.input(8)
    file = tmp_path / "net.onnx"
    file.write_bytes(b"before")
    with pytest.raises(CdlibError, match="outputs differ"):
        export(net, x, file, tolerance=0.0)
    assert file.read_bytes() == b"before"
    quantized = static(net, x)
    real = type(quantized).forward
    monkeypatch.setattr(type(quantized), "forward", lambda self, x: -real(self, x))
    with pytest.raises(CdlibError, match="agrees with the network on"):
        export(quantized, x, file)
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("images", "path", "message"),
    [
        (SAMPLE.test.input(1), "net.onnx", "at least two images"),
        (SAMPLE.test.input(2), "none/net.onnx", "there is no folder"),
        (torch.zeros(2, 5, 32, 32), "net.onnx", "cannot be exported to ONNX"),
    ],
)
def test_bad_input_of_an_export_is_one_line(images: torch.Tensor, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CdlibError, match=message) as error:
        export(lively("vgg_mini"), images, tmp_path / path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_branch_on_values_is_one_line_and_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Doubtful(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.max() > 2 else -x.flatten(1)

    with pytest.raises(CdlibError, match="data-dependent") as error:
        export(Doubtful(), SAMPLE.test.input(2), tmp_path / "net.onnx")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value) and len(str(error.value)) < 300
    assert capfd.readouterr() == ("", "")


class Spoilt(nn.Module):
    """A network and what is wrong with it."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.net, self.change = lively("vgg_mini"), change

    def forward(self, x: torch.Tensor) -> Any:
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda y: y * float("nan"), "NaN or infinity"), (lambda y: (y, y), "tuple"), (lambda y: y.argmax(1), "Tensor")],
)
@pytest.mark.filterwarnings("ignore")
def test_outputs_that_cannot_be_compared_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CdlibError, match=message) as error:
        export(Spoilt(change), SAMPLE.test.input(4), tmp_path / "net.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_can_be_known_before_is_refused_before(tmp_path: Path) -> None:
    net, x = lively("vgg_mini"), SAMPLE.test.input(4)
    spoilt = x.clone()
    spoilt[3, 0, 0, 0] = torch.nan
    cases: dict[str, Any] = {
        "not all finite": (net, spoilt, tmp_path / "a.onnx"),
        "torch.uint8": (net, x.to(torch.uint8), tmp_path / "a.onnx"),
        "is a folder": (net, x, tmp_path),
    }
    for message, given in cases.items():
        with pytest.raises(CdlibError, match=message):
            export(*given)
    for tolerance in (float("nan"), -0.1, 1.0):
        with pytest.raises(CdlibError, match="tolerance="):
            export(net, x, tmp_path / "a.onnx", tolerance=tolerance)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", [10, 1])
@pytest.mark.parametrize("kept", [True, False])
def test_integer_networks_are_checked_by_the_numbers_they_give(
    kept: bool, outputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the last layer is float32, whose outputs no quantizer gives, and if there is no second class."""
    torch.manual_seed(0)
    head = nn.Linear(8, outputs)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    with torch.no_grad():
        if kept:  # outputs of far less than a step of the quantizer before
            head.weight /= 1000
            head.bias.zero_()
    x = SAMPLE.test.input(50)
    quantized = static(nn.Sequential(*body, head), x, keep=["4"] if kept else [])
    assert export(quantized, x, tmp_path / "net.onnx") <= 1
    real = type(quantized).forward
    monkeypatch.setattr(type(quantized), "forward", lambda self, x: -real(self, x))
    with pytest.raises(CdlibError, match="agrees with the network on"):
        export(quantized, x, tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
