"""The book's own networks: the papers' architectures made fit for 32x32 images, and small members of the same families.

Blocks and initialisation are torchvision's where it has them; only the stem, the classifier and the sizes are set here.
Every function returns a fresh float32 network that maps images [N, C, H, W] to logits [N, classes]. Global pooling
makes them accept larger images as well. Finding a network by its name, pretrained weights and other people's networks
are left to `cdlib.models`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn

from cdlib.errors import CdlibError, check_seed, check_share, check_whole
from cdlib.models.whitening import Dirac, plain_cnn
from cdlib.torch_state import copied

# The stem's stride -> (kernel, padding). 4 is the published patch stem; 2 and 1 keep more of a small image.
STEMS = {4: (4, 0), 2: (3, 1), 1: (3, 1)}

# A layer is the width of a 3x3 convolution, or width, kernel and stride of another one, or "pool".
Layer = int | str | tuple[int, int, int]
ALEXNET = ((64, 11, 4), "pool", (192, 5, 1), "pool", 384, 256, 256, "pool")
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")

# Expansion, width, blocks and stride of each stage of MobileNetV2; the second stage's stride is 1 instead of 2.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def alexnet_cifar(classes: int = 10) -> nn.Module:
    """AlexNet for 32x32: five convolutions and one linear layer, as in bearpaw/pytorch-classification (2.47 M)."""
    return _initialised(_network(_plain(3, ALEXNET), nn.Linear(256, classes)), "fan_in")


def vgg16_cifar(classes: int = 10, *, norm: bool = False) -> nn.Module:
    """VGG-16 for 32x32 with the 512-512-classes classifier of the OTO papers (15.25 M with batch normalisation)."""
    return _initialised(_network(_plain(3, VGG16, norm=norm), _three_linear(512, 512, classes)), "fan_in")


def resnet_cifar(depth: int, classes: int = 10) -> nn.Module:
    """torchvision's ResNet-18 or ResNet-50 with a 3x3 stem of stride 1 and no max pooling (11.17 M and 23.52 M)."""
    import torchvision.models as zoo

    model = zoo.get_model(f"resnet{depth}", num_classes=classes)
    model.conv1 = _initialised(nn.Conv2d(3, 64, 3, padding=1, bias=False))
    model.maxpool = nn.Identity()
    return model


def mobilenet_v2_cifar(classes: int = 10) -> nn.Module:
    """torchvision's MobileNetV2 with stride 1 in the stem and in the second stage: maps of 32, 16, 8 and 4 (2.24 M)."""
    import torchvision.models as zoo

    model = zoo.mobilenet_v2(num_classes=classes, inverted_residual_setting=[list(stage) for stage in MOBILENET_V2])
    model.features[0][0].stride = (1, 1)
    return model


def convnext(size: str, classes: int = 10, *, stem: int = 4, drop_path: float | None = None) -> nn.Module:
    """torchvision's ConvNeXt ("tiny", "small", "base" or "large") with a choice of stem.

    Parameters
    ----------
    size : str
        Which member of the family.
    classes : int, default 10
        Width of the classifier.
    stem : {4, 2, 1}
        Stride of the stem. 4 is the published 4x4 patch; 2 and 1 use a 3x3 kernel with padding 1.
    drop_path : float, optional
        Stochastic depth of the last block, in [0, 1); torchvision's own (0.1, 0.4, 0.5, 0.5 by size) by default.
    """
    import torchvision.models as zoo

    options = {}
    if drop_path is not None:
        check_share("drop_path", drop_path)
        options["stochastic_depth_prob"] = drop_path
    model = zoo.get_model(f"convnext_{size}", weights=None, num_classes=classes, **options)
    set_stem(model.features[0], stem)
    return model


def alexnet_mini(classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """A small AlexNet: five convolutions hold the work, three linear layers most of the parameters (0.11 M)."""
    features = _plain(in_channels, (16, "pool", 32, "pool", 48, 32, 32))
    return _initialised(_network(features, _three_linear(4 * 32, 192, classes), pool=2), "fan_in")


def vgg_mini(classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """A small VGG with batch normalisation: three pairs of 3x3 convolutions and two linear layers (77 k)."""
    widths = (16, 16, "pool", 32, 32, "pool", 64, 64)
    head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, classes))
    return _initialised(_network(_plain(in_channels, widths, norm=True), head), "fan_in")


def resnet_mini(classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """ResNet-20 of He et al. (arXiv 1512.03385, section 4.2) with 1x1 projection shortcuts (0.27 M)."""
    from torchvision.models.resnet import BasicBlock
    from torchvision.ops import Conv2dNormActivation

    stages, width = [], 16
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
        blocks = [BasicBlock(width, out, stride, shortcut)] + [BasicBlock(out, out) for _ in range(2)]
        stages.append(nn.Sequential(*blocks))
        width = out
    stem = Conv2dNormActivation(in_channels, 16, 3)
    return _initialised(_network(nn.Sequential(stem, *stages), nn.Linear(width, classes)))


def mobilenet_mini(classes: int = 10, *, in_channels: int = 3) -> nn.Module:
    """A small MobileNetV2: six inverted residuals between a 3x3 stem and a 1x1 convolution (38 k)."""
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.ops import Conv2dNormActivation

    conv = partial(Conv2dNormActivation, activation_layer=nn.ReLU6)
    layers: list[nn.Module] = [conv(in_channels, 16, 3)]
    width = 16
    for expansion, out, stride in ((1, 8, 1), (4, 16, 2), (4, 16, 1), (4, 32, 2), (4, 32, 1), (4, 48, 1)):
        layers.append(InvertedResidual(width, out, stride, expansion))
        width = out
    layers.append(conv(width, 128, 1))
    return _initialised(_network(nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(128, classes))))


def convnext_mini(
    classes: int = 10, *, in_channels: int = 3, stem: int = 2, drop_path: float = 0.0, layer_scale: float = 1e-6
) -> nn.Module:
    """A small ConvNeXt: widths 64-128-256, depths 2-2-2 (1.6 M). Its smallest input is 4 x stem: 8x8 with stem 2.

    `layer_scale` is what each block's result is multiplied by at first; the published 1e-6 is for a long training.
    """
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    check_share("drop_path", drop_path)
    stages = [CNBlockConfig(64, 128, 2), CNBlockConfig(128, 256, 2), CNBlockConfig(256, None, 2)]
    if not (isinstance(layer_scale, int | float) and 0 < layer_scale <= 1):
        raise CdlibError(f"layer_scale={layer_scale!r}: give a number above 0, at most 1.")
    model = ConvNeXt(stages, stochastic_depth_prob=drop_path, layer_scale=float(layer_scale), num_classes=classes)
    set_stem(model.features[0], stem, in_channels)
    return model


def efficientnet_lite0(classes: int = 10, *, input_size: int | None = None) -> nn.Module:
    """EfficientNet-Lite0 of timm, behind what enlarges the images: ImageNet weights need large ones (3.4 M).

    EfficientNet-B0 without squeeze-and-excitation and with ReLU6, made for integer units (Liu 2020, "Higher accuracy on
    vision models with EfficientNet-Lite").

    Parameters
    ----------
    classes : int, default 10
        Width of the classifier.
    input_size : int or None, default None
        Height and width to which images are interpolated (bilinear), from 32; None takes them as they are.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    if input_size is not None:
        check_whole("input_size", input_size, 32)
    resize = nn.Identity() if input_size is None else nn.Upsample((input_size, input_size), mode="bilinear")
    return nn.Sequential(OrderedDict(resize=resize, network=network))


# Every network of the book by name; the keyword-only parameters of each function are the options `build` takes.
BOOK: dict[str, Callable[..., nn.Module]] = {
    "alexnet_cifar": alexnet_cifar,
    "vgg16_cifar": lambda classes=10: vgg16_cifar(classes),
    "vgg16_bn_cifar": lambda classes=10: vgg16_cifar(classes, norm=True),
    "resnet18_cifar": partial(resnet_cifar, 18),
    "resnet50_cifar": partial(resnet_cifar, 50),
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
    **{f"convnext_{size}": partial(convnext, size) for size in ("tiny", "small", "base", "large")},
    "alexnet_mini": alexnet_mini,
    "vgg_mini": vgg_mini,
    "resnet_mini": resnet_mini,
    "plain_cnn": plain_cnn,
    "mobilenet_mini": mobilenet_mini,
    "convnext_mini": convnext_mini,
    "efficientnet_lite0": efficientnet_lite0,
}


def reinitialised(model: nn.Module, seed: int, mode: Literal["fan_in", "fan_out"] = "fan_in") -> nn.Module:
    """Return a copy of a network with weights drawn anew, for the widths that its layers have now.

    As the book's networks are built: He-normal weights of convolutions and linear layers, N(0, 0.01) if the last module
    is linear, zero biases; every other layer as its `reset_parameters` does it (norms start over). Parameters that
    belong to no such layer keep their values, and so do layers of which nothing is trained, such as a `Whitening`. In a
    network with `Dirac` convolutions all layers are as their `reset_parameters` does it.

    Parameters
    ----------
    model : nn.Module
    seed : int
        Of the weights. torch's global generator is left as it was.
    mode : "fan_in" or "fan_out", default "fan_in"
        Which side's width decides about the variance, 2 over its number of weights.

    References
    ----------
    He et al. (2015), arXiv:1502.01852.
    """
    check_seed(seed)
    network = copied(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)) and not _frozen(module):
                reset()
        return network if any(isinstance(m, Dirac) for m in network.modules()) else _initialised(network, mode)


def set_stem(parent: nn.Module, stem: int, in_channels: int = 3) -> None:
    """Give a ConvNeXt the stem of stride `stem`: replaces the convolution that is the first child of `parent`.

    Raises
    ------
    CdlibError
        `stem` is not 4, 2 or 1.
    """
    if stem not in tuple(STEMS):  # also what has no hash
        raise CdlibError(f"stem={stem!r} is not a ConvNeXt stem: give the stride 4, 2 or 1.")
    name, old = next(parent.named_children())
    assert isinstance(old, nn.Conv2d)
    kernel, padding = STEMS[stem]
    if (old.in_channels, old.kernel_size, old.stride) == (in_channels, (kernel, kernel), (stem, stem)):
        return
    new = nn.Conv2d(in_channels, old.out_channels, kernel, stride=stem, padding=padding)
    nn.init.trunc_normal_(new.weight, std=0.02)
    assert new.bias is not None
    nn.init.zeros_(new.bias)
    setattr(parent, name, new)


def _network(features: nn.Module, head: nn.Module, *, pool: int = 1) -> nn.Sequential:
    """Join features, pooling to `pool` x `pool`, and a classifier."""
    parts = {"features": features, "pool": nn.AdaptiveAvgPool2d(pool), "flatten": nn.Flatten(), "classifier": head}
    return nn.Sequential(OrderedDict(parts))


def _three_linear(inputs: int, width: int, classes: int) -> nn.Sequential:
    """The classifier of AlexNet and VGG: two hidden layers with dropout, then the logits."""
    hidden: list[nn.Module] = []
    for features in (inputs, width):
        hidden += [nn.Linear(features, width), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*hidden, nn.Linear(width, classes))


def _plain(in_channels: int, layers: Sequence[Layer], *, norm: bool = False) -> nn.Sequential:
    """Convolutions with padding, each with an optional batch norm and a ReLU; "pool" halves the map."""
    made: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            made.append(nn.MaxPool2d(2))
            continue
        width, kernel, stride = layer if isinstance(layer, tuple) else (layer, 3, 1)
        made.append(nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2))
        made += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*made)


def _initialised(network: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> nn.Module:
    """Draw He-normal weights, N(0, 0.01) for a final linear layer, zero the biases, and return the network.

    torchvision's mode is "fan_out"; plain networks train sooner with "fan_in", which keeps the activations' variance.
    """
    last: nn.Module = network
    for last in network.modules():
        if isinstance(last, nn.Conv2d | nn.Linear) and not _frozen(last):
            nn.init.kaiming_normal_(last.weight, mode=mode, nonlinearity="relu")
            if last.bias is not None:
                nn.init.zeros_(last.bias)
    if isinstance(last, nn.Linear):
        nn.init.normal_(last.weight, std=0.01)
    return network


def _frozen(module: nn.Module) -> bool:
    """Whether a module has parameters and none of them is trained."""
    own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    return bool(own) and not any(own)
