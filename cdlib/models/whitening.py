"""The plain network that trains fastest on small images, and its first layer, which is made of the images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError


def plain_cnn(
    classes: int = 10,
    *,
    widths: Sequence[int] = (16, 64, 64),
    in_channels: int = 3,
    norm_scales: bool = True,
    relu: bool = False,
) -> nn.Module:
    """The plain network that trains fastest: three pairs of 3x3 convolutions behind a layer that whitens (0.13 M).

    The family of the CIFAR-10 speed runs (Jordan 2024, arXiv:2404.00498, section 3): a `Whitening` that is not trained;
    in each pair convolution, max pooling, batch norm, GELU, convolution, batch norm, GELU; the largest value of each
    map; a linear layer whose result is divided by 9. Convolutions hand on their first inputs unchanged at first
    (Dirac). Its smallest input is 9x9.

    Parameters
    ----------
    classes : int, default 10
        Width of the classifier.
    widths : three int, default (16, 64, 64)
        Of the pairs; (64, 256, 256) is the published network.
    in_channels : int, default 3
        Of the images; the first layer makes eight times as many.
    norm_scales : bool, default True
        Whether the norms' scales are trained. The published network keeps them at 1.
    relu : bool, default False
        ReLU in place of GELU: runtimes of integers join it to the layer before it, and compute a GELU in float32.
    """
    if len(widths) != 3:
        raise CdlibError(f"widths={widths!r}: give three, one for each pair of convolutions.")
    act = nn.ReLU if relu else nn.GELU
    layers: list[nn.Module] = [Whitening(in_channels), act()]
    inputs = 8 * in_channels
    for width in widths:
        for pool in (nn.MaxPool2d(2), None):
            conv, norm = Dirac(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, 1e-12, momentum=0.4)
            norm.weight.requires_grad_(norm_scales)
            layers += [conv, *([pool] if pool else []), norm, act()]
            inputs = width
    head = nn.Sequential(nn.Linear(inputs, classes, bias=False), Scaled(1 / 9))
    parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveMaxPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=head))


class Scaled(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x * self.factor


class Dirac(nn.Conv2d):
    """A convolution that hands on its inputs unchanged at first; outputs beyond their number are drawn as usual."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        nn.init.dirac_(self.weight[: self.in_channels].detach())


class Whitening(nn.Conv2d):
    """A 2x2 convolution that is not trained but made of images, by `whiten`; eight filters for each channel."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 8 * in_channels, 2, bias=False)
        self.weight.requires_grad_(False)


def whiten(model: nn.Module, images: Tensor) -> None:
    """Make the `Whitening` of a network, if it has one, of images, in place.

    Half of its filters become the eigenvectors of the second moments of all 2x2 patches, each divided by the root of
    its eigenvalue plus 5e-4, so that what they make of the images is uncorrelated and of size one; the others are their
    negatives.

    Parameters
    ----------
    model : nn.Module
        Any network.
    images : Tensor, float32 [n, C, H, W]
        Normalised; 5,000 are plenty. Filters are computed in float64, and the largest number of each is positive.

    References
    ----------
    Page (2019), "How to train your ResNet 8: bag of tricks"; Jordan (2024), arXiv:2404.00498, section 3.1.
    """
    for layer in model.modules():
        if isinstance(layer, Whitening):
            patches = images.unfold(2, 2, 1).unfold(3, 2, 1).movedim(1, 3).flatten(0, 2).flatten(1).double()
            values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
            vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
            filters = (vectors / (values + 5e-4).sqrt()).T.view(-1, *layer.weight.shape[1:])
            layer.weight.data.copy_(torch.cat([filters, -filters]))
