"""What a stopwatch and a memory allocator say about a network: latency, peak memory, the size of its file, the machine.

Counting (parameters, MACs, modelled memory) is left to `cdlib.complexity`; putting figures side by side to
`cdlib.report`. Nothing here changes a model: training flags, gradient mode and the number of threads are put back as
they were.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import itertools
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cdlib.errors import CdlibError
from cdlib.train.evaluation import device_of, evaluating

if TYPE_CHECKING:
    from typing_extensions import Buffer

WARM_UP = 5  # calls of each model that are not counted: caches, lazily built kernels, clock frequency


def latencies(
    models: Mapping[str, nn.Module],
    inputs: tuple[Tensor, ...],
    *,
    runs: int = 50,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Time one forward pass of each model, the models taking turns.

    Every round calls each model once, and each round starts one model later than the round before. A disturbance of the
    machine then falls on all models alike, and none is always the one that runs on the caches its neighbour left.

    Parameters
    ----------
    models : mapping of str to nn.Module
        The models, by name; each is timed on the device that holds its weights.
    inputs : tuple of Tensor
        What the forward pass takes; copied to each model's device beforehand, so that no transfer is timed.
    runs : int, default 50
        Rounds that count, at least 1. `WARM_UP` more go before them.
    progress : bool, default False
        Show a progress bar on standard error.

    Returns
    -------
    dict of str to ndarray
        For each model its `runs` times in milliseconds, in the order in which they were taken.

    Raises
    ------
    CdlibError
        If there are no models or no runs.
    """
    if not models or runs < 1:
        raise CdlibError(f"nothing to time: {len(models)} models and {runs} runs; give at least one of each.")
    from tqdm import tqdm

    names = list(models)
    calls = {name: _forward(model, inputs) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    with _inference(models.values()), _without_collector():
        for name, _ in itertools.product(names, range(WARM_UP)):
            calls[name]()
        for turn in tqdm(range(runs), desc="latency", leave=False, disable=not progress):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter_ns()
                calls[name]()
                times[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: np.asarray(values) for name, values in times.items()}


def allocator_peak(model: nn.Module, inputs: tuple[Tensor, ...]) -> int | None:
    """Return the most bytes that one forward pass holds at once, by the allocator's own account.

    Counted above what was allocated before (the weights), with a fresh copy of the input, scratch space of the kernels
    included. A model of live tensors (`Profile.peak_activation_bytes`) has no such scratch space and is usually lower.

    Parameters
    ----------
    model : nn.Module
        On the CPU or a CUDA device.
    inputs : tuple of Tensor
        What the forward pass takes.

    Returns
    -------
    int or None
        Bytes; None on a device whose allocator keeps no account.
    """
    device = device_of(model)
    inputs = tuple(value.to(device) for value in inputs)
    with _inference([model]):
        model(*inputs)  # what is made once (workspaces, packed weights) is not a forward pass's peak
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(*(value.clone() for value in inputs))
            torch.cuda.synchronize(device)
            return int(torch.cuda.max_memory_allocated(device) - before)
        if device.type == "cpu":
            return cpu_peak(lambda: model(*(value.clone() for value in inputs)))
    return None


def file_bytes(model: nn.Module) -> int:
    """Return the size in bytes of the model's artefact: what `torch.save` writes of its state_dict, uncompressed."""
    counter = _Counter()
    torch.save(model.state_dict(), counter)
    return counter.total


def hardware() -> dict[str, str | int | None]:
    """Return what the machine is: `cpu` (model name), `cores` (logical), `gpu` (name or None), `threads` (torch's)."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def machine(device: torch.device | str = "cpu") -> str:
    """Return one line that tells apart what may not be compared: the device's name, the cores and torch's threads."""
    parts = [f"{_cpu_name()}, {os.cpu_count()} cores", f"{torch.get_num_threads()} torch thread(s)"]
    if torch.device(device).type == "cuda":
        parts.insert(0, torch.cuda.get_device_name(device))
    elif torch.device(device).type != "cpu":
        parts.insert(0, str(device))
    return ", ".join(parts)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a `with` block on `count` torch threads (None: as it is), and restore the setting after it.

    Raises
    ------
    CdlibError
        If `count` is less than 1.
    """
    if count is not None and count < 1:
        raise CdlibError(
            f"threads is {count}; give at least 1, or leave it out to keep torch's {torch.get_num_threads()}."
        )
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


class _Counter(io.BytesIO):
    """A file that keeps only its length, so that a large model is not held twice in memory."""

    total = 0

    def write(self, data: Buffer, /) -> int:
        size = memoryview(data).nbytes
        self.total += size
        return size


def _forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """Return a call of the forward pass that comes back only when the device has finished it."""
    device = device_of(model)
    local = tuple(value.to(device) for value in inputs)

    def call() -> None:
        model(*local)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    return call


def cpu_peak(call: Callable[[], object]) -> int:
    """Return the peak of the running total of the CPU allocator's events while `call` runs."""
    # Kineto prints internal notices on standard error unless told not to before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorder:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = pathlib.Path(folder, "trace.json")
        recorder.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    return max(itertools.accumulate(event["args"]["Bytes"] for event in memory), default=0)


@contextlib.contextmanager
def _inference(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put models into evaluation mode, without gradients, for a `with` block."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        yield


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed call."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@functools.cache
def _cpu_name() -> str:
    """Return the CPU's model name as the operating system gives it, else the architecture."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
