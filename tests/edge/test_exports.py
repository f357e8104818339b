"""Twenty networks of torchvision with a quarter of every group cut out run in onnxruntime and compute the same there.

Of equal blocks in a row one is left, which keeps every kind of operator and takes a fraction of the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import DenseNet

import cdlib
from cdlib import models
from cdlib.edge import export
from cdlib.quantization import static

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SMALL = (
    *(
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "googlenet",
        "mnasnet0_5",
        "mobilenet_v2",
    ),
    *("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_1"),
)
SHAPES = {
    **dict.fromkeys(SMALL, (32, 32)),
    **dict.fromkeys(("mc3_18", "r2plus1d_18", "r3d_18"), (4, 32, 32)),
    "alexnet": (64, 64),
    "inception_v3": (75, 75),
}
"""Pixels that a network takes, or frames and pixels."""


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with few blocks whose batch norms have seen images, and images."""
    torch.manual_seed(0)
    net = DenseNet(block_config=(3, 3, 3, 3), num_classes=10) if name == "densenet121" else models.build(name)
    images = torch.randn(8, 3, *SHAPES[name])
    for stage in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        shapes = [[tensor.shape for tensor in block.state_dict().values()] for block in stage]
        for place in reversed(range(1, len(shapes))):
            if shapes[place] and shapes[place - 1] == shapes[place]:
                del stage[place]
    for norm in net.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = None
    with torch.no_grad():
        net(images)
    return net.eval(), images


def smaller(net: nn.Module, images: torch.Tensor) -> nn.Module:
    groups = cdlib.find_groups(net, images[:1])
    return cdlib.remove(net, groups, {group.name: range(group.size // 4) for group in groups.prunable})


def both(net: nn.Module, file: Path, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What the network computes, and what the runtime does with the file."""
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = net(images).numpy()
    return wanted, session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


@pytest.mark.parametrize("name", SHAPES)
def test_a_cut_network_computes_the_same_in_a_runtime(name: str, tmp_path: Path) -> None:
    net, images = network(name)
    cut = smaller(net, images)
    weights, left = (sum(p.numel() for p in model.parameters()) for model in (net, cut))
    assert left < 0.65 * weights
    export(cut, images[:2], tmp_path / "net.onnx")
    wanted, found = both(cut, tmp_path / "net.onnx", torch.randn(3, *images.shape[1:]))
    spread = wanted.std(0).max()  # of the outputs over images: what does not depend on them agrees too easily
    assert np.abs(found - wanted).max() < 1e-3 * spread


def test_so_does_a_whole_one(tmp_path: Path) -> None:
    net, images = network("resnet18")
    export(net, images[:2], tmp_path / "net.onnx")
    wanted, found = both(net, tmp_path / "net.onnx", torch.randn(3, *images.shape[1:]))
    assert np.abs(found - wanted).max() < 1e-3 * wanted.std(0).max()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_cut_network_of_integers_gives_the_same_classes(name: str, tmp_path: Path) -> None:
    net, images = network(name)
    quantized = static(smaller(net, images), images)
    assert export(quantized, images, tmp_path / "net.onnx") <= 3  # steps
    wanted, found = both(quantized, tmp_path / "net.onnx", torch.randn(40, *images.shape[1:]))
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.95
