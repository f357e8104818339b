"""What a stopwatch says about networks. Nothing here changes a model: training flags and gradient mode are put back."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from cdlib.errors import CdlibError
from cdlib.graph import ExampleInput, Inputs
from cdlib.torch_state import check_numbers, device_of
from cdlib.train import evaluating

WARM_UP = 5  # calls of each model that are not counted: caches, lazily built kernels, clock frequency


def latencies(
    models: Mapping[str, nn.Module],
    example_input: ExampleInput,
    *,
    kwargs: Mapping[str, Any] | None = None,
    runs: int = 50,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Time a forward pass of each model `runs` times, the models taking turns, in milliseconds and in this order.

    Every round calls each model once, and each round starts one model later than the round before. A disturbance of the
    machine then falls on all models alike, and none is always the one that runs on the caches its neighbour left.

    Parameters
    ----------
    models : mapping of str to nn.Module
        The models, by name; each is timed on the device that holds its weights.
    example_input : tensor or tuple
        What the forward pass takes, whole, as for `cdlib.profile`; copied to each model's device beforehand, so that no
        transfer is timed.
    kwargs : dict, optional
        Its arguments by name.
    runs : int, default 50
        Rounds that count, at least 1. `WARM_UP` more go before them.
    progress : bool, default False
        Show a progress bar on standard error.

    Raises
    ------
    CdlibError
        If there are no models or no runs, or a model has no numbers to compute with.
    """
    if not models or runs < 1:
        raise CdlibError(f"nothing to time: {len(models)} models and {runs} runs; give at least one of each.")
    inputs = Inputs.of(example_input, kwargs, None)
    calls = {name: _forward(model, inputs, name) for name, model in models.items()}
    with evaluating(*models.values()):
        return interleaved(calls, runs=runs, progress=progress)


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, runs: int, progress: bool = False
) -> dict[str, np.ndarray]:
    """Time calls `runs` times each, in turns as `latencies` describes, in milliseconds; `WARM_UP` more go before."""
    from tqdm import tqdm

    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    with _without_collector():
        for name, _ in itertools.product(names, range(WARM_UP)):
            calls[name]()
        for turn in tqdm(range(runs), desc="latency", leave=False, disable=not progress):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter_ns()
                calls[name]()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: np.asarray(values) for name, values in times.items()}


def _forward(model: nn.Module, inputs: Inputs, name: str) -> Callable[[], None]:
    """Return a call of the forward pass that comes back only when the device has finished it."""
    check_numbers(model, f"model {name!r}")
    device = device_of(model)
    local = inputs.to(device)

    def call() -> None:
        local.call(model)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    return call


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
