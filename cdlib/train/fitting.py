"""Training: one loop for a CPU, a GPU and several of them, that can be killed and rerun at any time.

`fit` trains a network in place by a `Recipe`, whose words `cdlib.train.recipe` explains. Start a script with
`accelerate launch` (on CPUs `torchrun`) to train over several processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cdlib.data import Dataset
from cdlib.models import CARD, Card
from cdlib.torch_state import check_numbers, device_of, is_channels_last
from cdlib.train.loop import Run
from cdlib.train.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished training run."""

    model: nn.Module  #: The model given, trained, in evaluation mode and on the device it came from.
    history: pd.DataFrame
    """A row per epoch, with epoch (from 1), lr (of its last step), train_loss (mean over its steps, with smoothing and
    mixup), validation_loss, validation_accuracy (0..1; NaN without a validation split) and seconds."""
    seconds: float  #: Sum over the epochs, those before an interruption included.


def fit(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    progress: bool = True,
    after_step: Callable[[int], None] | None = None,
    teacher: nn.Module | None = None,
    optimizer: Callable[[torch.optim.Optimizer], torch.optim.Optimizer] | None = None,
) -> Fit:
    """Train `model` in place on `dataset.train` and validate it after every epoch.

    The weights of the last epoch (their running average, if the recipe has one) are the result: no epoch is selected.
    `dataset.test` is never read.

    Parameters
    ----------
    model : nn.Module
        float32; takes [n, C, H, W] and returns a tensor [n, classes]. Its weights are where training starts from.
    dataset : Dataset
        Its train and validation splits are moved to the device as a whole.
    recipe : Recipe, default Recipe()
        How to train.
    seed : int, default 0
        Of order, augmentation, mixup, dropout and stochastic depth; not of the initial weights.
    checkpoint : path, optional
        A file written after every epoch. If it exists, training goes on from there; if the run is complete, its result
        is read from it. Several processes need it on a common disk only for the first of them.
    progress : bool, default True
        Show a progress bar on standard error.
    after_step : callable, optional
        Called with the number of steps done after every step of the optimizer, for example a
        `cdlib.pruning.Gradual`. What it remembers is in no checkpoint: it must follow from step and model. If it
        has an `end`, that must be a step of the training.
    optimizer : callable, optional
        Called with the recipe's optimizer, over the parameters where they are trained; returns the one to train with,
        for example `cdlib.pruning.hesso` over it. The average of `ema` begins when it `ends`: before, it would keep
        what has become zero.
    teacher : nn.Module, optional
        A trained network of the same classes, whose outputs the recipe's share `distill` of the loss aims at.

    Raises
    ------
    CdlibError
        If the model does not fit the data or the batch does not fit the split; if pruning would not be done when
        training ends; if `optimizer` returns none over these parameters; if the loss stops being finite (the
        checkpoint of the last whole epoch stays); if the checkpoint is damaged, of another run or cannot be written.

    Notes
    -----
    Each epoch is a pure function of weights, optimizer state, running average, seed and the epoch's number. So the
    same seed gives the same bits, and a run that was killed and started again ends with the bits of one that was not:
    always on one CPU with the same number of threads and the same versions; on a GPU too, as far as PyTorch has
    deterministic kernels, which are switched on here (it warns of an operator without one; set
    CUBLAS_WORKSPACE_CONFIG=:4096:8 if something used CUDA before). Between several processes, sums are added in an
    order PyTorch chooses: bits are then the same on all of them, but not promised from run to run; batch norm uses the
    statistics of each process's part of the batch, and keeps those of the first. The state of PyTorch's global random
    generators, and its settings for determinism, are as before when `fit` returns.
    """
    from accelerate import Accelerator

    check_numbers(model)
    recipe = recipe or Recipe()
    accelerator = Accelerator(mixed_precision="no")  # the recipe decides about autocast
    home = device_of(model)
    layout = torch.channels_last if any(map(is_channels_last, model.parameters())) else torch.contiguous_format
    with _reproducible(accelerator.device):
        try:
            path = Path(checkpoint) if checkpoint else None
            run = Run(model, dataset, recipe, seed, accelerator, path, optimizer, after_step, teacher)
            run.train(progress)
        finally:
            model.zero_grad(set_to_none=True)
            model.to(home).to(memory_format=layout)
    card: Card | None = getattr(model, CARD, None)
    if card and not (card.classes == list(dataset.classes) and card.takes(dataset.train.mean, dataset.train.std)):
        delattr(model, CARD)  # it says what the network took before
    history = pd.DataFrame(run.history)
    return Fit(model.eval(), history, float(history["seconds"].sum()))


@contextlib.contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Switch on deterministic kernels; put them, and the global random generators, back as they were at the end."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before, fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    tune = torch.backends.cudnn.benchmark
    try:
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms, without importing the compiler
        settings.fill_uninitialized_memory = False  # slow, and nothing here reads such memory
        torch.backends.cudnn.benchmark = False
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = tune
