"""Training with rounded numbers (quantization-aware training): what rounding costs is given back by a few epochs."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cdlib.data import Dataset
from cdlib.errors import check_choice
from cdlib.quantization.placing import Quantized
from cdlib.quantization.post_training import static
from cdlib.quantization.quantizers import Quantizer
from cdlib.torch_state import copied
from cdlib.train import Recipe, fit

WAYS = ("learned", "running", "fixed")
RUNNING = 0.01
"""The weight of a batch's range in a running range."""


def train(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe | None = None,
    *,
    bits: int | dict[str, int] = 8,
    calibration: int = 512,
    scales: str = "learned",
    teacher: nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    progress: bool = True,
) -> Quantized:
    """Return a network that was trained with rounded weights and activations.

    Gradients pass rounding as if it were not there, and stop where numbers are clipped (the straight-through estimator,
    Bengio et al. 2013, arXiv:1308.3432).

    Parameters
    ----------
    model : nn.Module
        A trained network, cut or not, which `static` quantizes first; or one that is quantized, whose bits stay.
    dataset : Dataset
        Calibration images are drawn from its training split.
    recipe : Recipe, optional
        Of `cdlib.train.fit`; a tenth of the learning rate of the training before is usual.
    bits : int or dict of str to int, default 8
        Of the weights, as for `static`.
    calibration : int, default 512
        How many images give the ranges to start from.
    scales : {"learned", "running", "fixed"}, default "learned"
        Scales are trained with the weights (Esser et al. 2020, arXiv:1902.08153), follow the ranges of weights and
        activations, those of the latter averaged (Jacob et al. 2018, arXiv:1712.05877), or stay as they are.
    teacher : nn.Module, optional
        The float network, for a recipe that has `distill`.
    seed, checkpoint, progress
        As for `cdlib.train.fit`: killed and started again with a checkpoint, training goes on.

    Raises
    ------
    CdlibError
        As `static` and `cdlib.train.fit`.
    """
    check_choice("scales", scales, WAYS)
    if isinstance(model, Quantized):
        network = copied(model)
    else:
        some = dataset.train.sample(min(calibration, len(dataset.train)), seed)
        network = static(model, some, bits=bits, correct_bias=False)
    layers = {layer.weights for layer in network.layers().values()}
    quantizers = [module for module in network.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        if scales == "learned":
            quantizer.learn()
        elif scales == "running":
            quantizer.running = 1.0 if quantizer in layers else RUNNING
    try:
        fit(network, dataset, recipe, seed=seed, checkpoint=checkpoint, progress=progress, teacher=teacher)
    finally:
        for quantizer in quantizers:
            quantizer.stop_learning()
            quantizer.running = None
    for layer in network.layers().values():
        layer.make_room()
    return network.eval()
