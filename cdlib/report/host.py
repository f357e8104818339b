"""The machine that measures: what it is, and how many threads it uses."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from cdlib.errors import check_whole

INSTRUCTIONS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm"),
)
"""Sets of instructions that decide how fast integers and short floats are, by the names Linux gives them."""


def hardware() -> dict[str, Any]:
    """Return what the machine is.

    `cpu` (model name), `instructions` (those of `INSTRUCTIONS` that it has; None where the system does not say),
    `cores` (logical), `gpu` (name or None) and `threads` (torch's).
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    return {"cpu": _cpu_name(), "instructions": instructions(), "cores": os.cpu_count(), "gpu": gpu, "threads": threads}


@functools.cache
def instructions() -> list[str] | None:
    """Return those of `INSTRUCTIONS` that the CPU has, as Linux lists them; None on other systems."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, found = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return [each for each in INSTRUCTIONS if each in found.split()]
    return None


def machine(device: torch.device | str = "cpu") -> str:
    """Return one line that tells apart what may not be compared: the device's name, the cores and torch's threads."""
    parts = [f"{_cpu_name()}, {os.cpu_count()} cores", f"{torch.get_num_threads()} torch thread(s)"]
    kind = torch.device(device).type
    if kind != "cpu":
        parts.insert(0, torch.cuda.get_device_name(device) if kind == "cuda" else str(device))
    return ", ".join(parts)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a `with` block on `count` torch threads, 1 or more (None: as it is), and restore the setting after it."""
    before = torch.get_num_threads()
    if count is not None:
        check_whole("threads", count, 1)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
