"""Networks that are put together unusually: what is quantized computes what they compute, up to its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cdlib
from cdlib import CdlibError
from cdlib.edge import export
from cdlib.quantization import Quantized, apply, bitwidths, static


class Net(nn.Module):
    """Some layers by name, and what is done with them."""

    def __init__(self, does: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.does = does
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(self, x)


def trained(net: nn.Module, images: Tensor) -> nn.Module:
    """With averages of norms as after some training."""
    net.train()
    for _ in range(20):
        net(images * 2 + 1)
    return net.eval()


def steps_off(small: Quantized, net: nn.Module, images: Tensor) -> float:
    """How far both are apart at most, in 255ths of the range of the outputs."""
    with torch.no_grad():
        wanted = net(images)
        return float((small(images) - wanted).abs().max() / (wanted.amax() - wanted.amin()) * 255)


def conv(inputs: int = 3, width: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, width, 3, padding=1, **options)


ODD = {
    "a norm over the middle dimension": (
        lambda: Net(lambda m, x: m.norm(m.fc(x)).flatten(1), fc=nn.Linear(12, 12), norm=nn.BatchNorm1d(12)),
        (12, 12),
    ),
    "a norm without scales behind a linear layer": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 3)),
        (6,),
    ),
    "a norm without scales behind a convolution": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(256, 3)),
        (3, 8, 8),
    ),
    "numbers read twice, once through an in-place ReLU behind pooling": (
        lambda: Net(
            lambda m, x: (m.relu(m.pool(y := m.conv(x))) + F.avg_pool2d(y, 2)).flatten(1),
            **{"conv": conv(), "pool": nn.MaxPool2d(2), "relu": nn.ReLU(inplace=True)},
        ),
        (3, 8, 8),
    ),
    "an argument by name": (
        lambda: Net(lambda m, x: m.fc(m.conv(input=x).flatten(1)), conv=conv(), fc=nn.Linear(256, 3)),
        (3, 8, 8),
    ),
    "sums of sizes": (
        lambda: Net(
            lambda m, x: m.fc(m.conv(x).reshape(x.size(0), 4 * (x.shape[2] * x.shape[3] + x.shape[2] - x.shape[2]))),
            **{"conv": conv(), "fc": nn.Linear(256, 3)},
        ),
        (3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_quantized_to_what_they_compute(name: str) -> None:
    make, shape = ODD[name]
    torch.manual_seed(0)
    images = torch.randn(64, *shape)
    net = trained(make(), images)
    assert steps_off(static(net, images), net, images) < 8


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_far_beyond_its_weights_fits_into_32_bits(per_channel: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net, images = (
        nn.Sequential(conv(), nn.ReLU(), conv(4, 3), nn.Flatten(), nn.Linear(192, 3)),
        torch.randn(32, 3, 8, 8),
    )
    with torch.no_grad():
        net[0].weight[0] *= 1e-7
        net[0].bias[0] = 0.5
    small = static(net, images, per_channel=per_channel)
    whole = small.layers()["0"].integers()["bias"]
    assert (2**22 if per_channel else 0) < whole.abs().max() < 2**31
    assert export(small, images, tmp_path / "small.onnx") <= 1
    assert steps_off(small, net, images) < 8
    cdlib.save(small, tmp_path / "small.cdlib")
    assert torch.equal(cdlib.load(tmp_path / "small.cdlib", net)(images), small(images))


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    torch.manual_seed(0)
    net, images = nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 3)), torch.rand(32, 3, 8, 8) * 255
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = 0.49
    small = static(net, images, correct_bias=False)
    layer = small.layers()["0"]
    assert float(layer.integers()["bias"][0] * layer.product_scale()[0]) == pytest.approx(0.49, rel=1e-4)


def test_weights_that_two_layers_share_are_refused() -> None:
    net = nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4))
    net[2].weight = net[0].weight
    with pytest.raises(CdlibError, match="2 and 0 share their weights"):
        static(net, torch.randn(8, 4, 6, 6))


def test_what_is_no_network_or_not_quantized_is_named() -> None:
    sample, net = cdlib.data.load("digits"), nn.Sequential(conv(1), nn.Flatten(), nn.Linear(256, 10))
    images = sample.test.input(8)
    wrong: dict[Any, str] = {
        lambda: apply(net, {"0": 4}): "'Sequential', not quantized",  # type: ignore[arg-type]
        lambda: bitwidths(net, sample.validation, 10**6): "'Sequential', not quantized",  # type: ignore[arg-type]
        lambda: apply(static(net, images), 4): "bits=4: give the bits of each layer",  # type: ignore[arg-type]
        lambda: static(3, images): "model is 'int'",  # type: ignore[arg-type]
        lambda: static(net, images, keep="0"): "keep='0': give a list",
    }
    for call, message in wrong.items():
        with pytest.raises(CdlibError, match=message):
            call()
