"""What the memory allocator says about a network, and the size of its file."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cdlib.graph import ExampleInput, Inputs
from cdlib.torch_state import check_numbers, device_of
from cdlib.train import evaluating


def allocator_peak(
    model: nn.Module, example_input: ExampleInput, *, kwargs: Mapping[str, Any] | None = None
) -> int | None:
    """Return the most bytes that one forward pass holds at once; None on a device whose allocator keeps no account.

    By the allocator's own account, above what was allocated before (the weights), with a fresh copy of the input and
    the scratch space of the kernels. A model of live tensors (`Profile.peak_activation_bytes`) has no such scratch
    space and is usually lower.

    The model is on the CPU or a CUDA device; `example_input` and, by name, `kwargs` are what its forward pass takes,
    whole, as for `cdlib.profile`.
    """
    check_numbers(model)
    device = device_of(model)
    inputs = Inputs.of(example_input, kwargs, None).to(device)

    def call() -> None:
        inputs.map(torch.clone).call(model)

    with evaluating(model):
        inputs.call(model)  # what is made once (workspaces, packed weights) is not a forward pass's peak
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call()
            torch.cuda.synchronize(device)
            return int(torch.cuda.max_memory_allocated(device) - before)
        return cpu_peak(call) if device.type == "cpu" else None


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


def file_bytes(model: nn.Module) -> int:
    """Return the size in bytes of the model's artefact: what `torch.save` writes of its state_dict, uncompressed."""
    with tempfile.TemporaryFile() as file:  # not in memory, which would hold a large model twice
        torch.save(model.state_dict(), file)
        return file.tell()
