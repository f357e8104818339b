"""Post-training quantization: 8-bit integers from a trained network and some images, without any training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor, nn

from cdlib.data import Split
from cdlib.errors import CdlibError, check_choice, check_whole
from cdlib.quantization.equalisation import equalise
from cdlib.quantization.placing import Quantized, prepared
from cdlib.quantization.quantizers import QuantizedLayer
from cdlib.quantization.ranges import RANGES, set_ranges, set_weight_range
from cdlib.text import one_line
from cdlib.torch_state import check_module, device_of
from cdlib.train import evaluating

BATCH = 100
"""Calibration images that run at a time."""


def static(
    model: nn.Module,
    calibration: Split | Tensor,
    *,
    bits: int | dict[str, int] = 8,
    per_channel: bool = True,
    ranges: str = "mse",
    keep: Collection[str] = (),
    equalised: bool = False,
    correct_bias: bool = True,
) -> Quantized:
    """Return a network whose weights and activations are rounded to integers times a scale (static quantization).

    Batch norms are folded into the layers before them; weights get `bits` bits, signed, symmetric; activations 8 bits,
    unsigned; biases are rounded as 32-bit integers. Layers without an integer kernel stay in float32, and the result's
    `in_float` says which (Jacob et al. 2018, arXiv:1712.05877).

    Parameters
    ----------
    model : nn.Module
        Trained; `torch.fx` must be able to trace it.
    calibration : Split, or Tensor [n, ...]
        Some hundred images such as the network will see, normalised if it is a tensor.
    bits : int or dict of str to int, default 8
        Of the weights, 2 to 8: of all layers, or of those named, the others staying in float32.
    per_channel : bool, default True
        Weights have a scale for each output channel, or one for a layer.
    ranges : {"mse", "minmax", "percentile"}, default "mse"
        Which range the activations' integers cover: that of least squared error, everything that was seen, or all but
        one in 10,000; of weights likewise, without the last.
    keep : collection of str
        Names of layers that stay in float32.
    equalised : bool, default False
        Move size between layers first, so that the channels of one have equal ranges: for depthwise networks with one
        scale for a layer. ReLU6 between layers becomes ReLU then.
    correct_bias : bool, default True
        Take off each bias what rounding the weights changes in the mean of the layer's outputs (Nagel et al. 2019,
        arXiv:1906.04721, section 4.2, here measured on the calibration images).

    Returns
    -------
    Quantized

    Raises
    ------
    CdlibError
        As `prepared`; if the network takes other images; if the images are none, all the same, or not finite; for
        bits that are not 2 to 8, and names of layers that are unknown.
    """
    check_choice("ranges", ranges, RANGES)
    check_module(model)
    images = _images(calibration).to(device_of(model))
    for value in bits.values() if isinstance(bits, dict) else [bits]:
        check_whole("bits", value, 2, 8)
    change = equalise if equalised else None
    rows = _sequences(model, images[:2])
    quantized = prepared(model, bits, per_channel=per_channel, keep=keep, rows=rows, change=change)
    quantized.plan["equalised"] = equalised

    @torch.no_grad()
    def run() -> Iterator[None]:
        for batch in images.split(BATCH):
            try:
                quantized(batch)
            except Exception as error:
                raise CdlibError(
                    f"the network cannot take calibration images {list(batch.shape)}: {one_line(error)}"
                ) from error
            yield

    set_ranges(quantized.activations(), run, ranges)
    for layer in quantized.layers().values():
        set_weight_range(layer.weights, layer.weight(), ranges)
        layer.make_room()
    if correct_bias:
        _correct(quantized, run)
    return quantized


def _sequences(model: nn.Module, images: Tensor) -> set[str]:
    """The names of `BatchNorm1d` modules whose inputs have three dimensions."""
    found: set[str] = set()
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)]
    if not norms or any(t.is_meta for t in model.parameters()):
        return found

    def see(name: str) -> Callable[..., None]:
        return lambda _, inputs: found.add(name) if inputs[0].dim() > 2 else None

    handles = [module.register_forward_pre_hook(see(name)) for name, module in norms]
    with contextlib.suppress(Exception), evaluating(model):  # what is wrong with it shows in the calibration
        model(images)
    for handle in handles:
        handle.remove()
    return found


def _correct(quantized: Quantized, run: Callable[[], Iterable[None]]) -> None:
    """Take the mean error of each layer's outputs, by channel, off its bias."""
    layers = list(quantized.layers().values())
    sums: dict[QuantizedLayer, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def see(layer: QuantizedLayer, inputs: tuple[Tensor], out: Tensor) -> None:
        rows = (out - layer.layer(*inputs)).double().movedim(layer.channel_dim, 0).flatten(1)
        sums[layer] = sums.get(layer, 0) + rows.sum(1)
        counts[layer] += rows.shape[1]

    handles = [layer.register_forward_hook(see) for layer in layers]
    for _ in run():
        pass
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for layer, total in sums.items():
            layer.bias().sub_(total / counts[layer])


def _images(calibration: Split | Tensor) -> Tensor:
    images = calibration.input(len(calibration)) if isinstance(calibration, Split) else calibration
    if not isinstance(images, Tensor) or images.dim() < 2:
        raise CdlibError(f"calibration={calibration!r}: give a Split, or a tensor of images [n, channels, ...].")
    if not len(images):
        raise CdlibError("there are no calibration images: give some hundred.")
    if not torch.isfinite(images).all():
        raise CdlibError("calibration images hold numbers that are not finite.")
    if images.amin() == images.amax():
        raise CdlibError("all calibration images are one and the same number: give real ones.")
    return images
