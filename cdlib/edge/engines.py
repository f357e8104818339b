"""What runs a network: PyTorch as it is or compiled, onnxruntime, ExecuTorch. Each becomes a call without arguments.

Run as a program, this module is the fresh process in which a cold start and the peak of memory are measured.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdlib.edge import pte_files
from cdlib.edge.onnx_files import export, session
from cdlib.errors import CdlibError, check_choice
from cdlib.text import one_line

ENGINES = ("eager", "compile", "onnxruntime", "executorch")
Call = Callable[[], object]
_PRODUCTS = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


@dataclass
class Running:
    """A network in an engine, ready to be called."""

    engine: str
    file: Path  #: What a fresh process loads.
    call: Call  #: Computes the outputs for the images once.
    operators: dict[str, int] = field(default_factory=dict)
    """How many of each kind the engine runs after it has fused what it can; empty where it does not say."""

    @property
    def in_float(self) -> dict[str, int]:
        """The products that run in float32 beside integer ones: what an integer kernel was not found for."""
        integer = any(kind.startswith(("QLinear", "MatMulInteger", "ConvInteger", "QGemm")) for kind in self.operators)
        return {kind: n for kind, n in self.operators.items() if kind in _PRODUCTS} if integer else {}


def running(network: nn.Module | str | Path, engine: str, images: Tensor, threads: int, folder: Path) -> Running:
    """Load a network into an engine.

    Parameters
    ----------
    network : nn.Module or path
        A path is that of a file, which `runner` says what alone runs; a module, in evaluation mode, is exported for it.
    engine : str
        One of `ENGINES`.
    images : Tensor [n, ...]
        What it is called with, as one batch.
    threads : int
        Of onnxruntime and ExecuTorch; PyTorch has its own setting (`cdlib.report.threads`).
    folder : path
        For files made on the way.

    Raises
    ------
    CdlibError
        If the engine is unknown, not installed, lacks a compiler, or cannot run the network.
    """
    check_choice("engine", engine, ENGINES)
    if isinstance(network, nn.Module):
        if engine in ("eager", "compile"):
            file = folder / "network.pt"
            with contextlib.suppress(Exception):  # a class of a notebook cannot be pickled: then nothing is cold
                torch.save(network, file)
            return Running(engine, file, _torch(network, engine, images))
        module = network
        network = folder / ("network.pte" if engine == "executorch" else "network.onnx")
        compared = images if len(images) > 1 else torch.cat([images, images])
        export(module, compared, network, batch=len(images))
    network = Path(network)
    if engine != runner(network):
        raise CdlibError(f"{network}: {engine} does not run such a file; give the module, or {runner(network)}.")
    return Running(engine, network, *_opened(network, images, threads, folder))


def runner(file: Path) -> str:
    """The engine that a file is for."""
    return "executorch" if file.suffix.lower() == ".pte" else "onnxruntime"


@contextlib.contextmanager
def affinity(cores: tuple[int, ...] | None) -> Iterator[None]:
    """Run a block on some cores only (None: as it is); a CdlibError if the system does not have them."""
    if cores is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise CdlibError("affinity: this system does not bind a process to cores; leave it out.")
    before = os.sched_getaffinity(0)
    if not cores or not set(cores) <= before:
        raise CdlibError(f"affinity={cores}: give some of the cores {sorted(before)}.")
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cold(run: Running, images: Tensor, threads: int) -> dict[str, float]:
    """Measure in a fresh process: ``load_ms``, ``first_ms`` (the first call) and ``peak_bytes``.

    The peak is that of resident memory from before the network is loaded to after ten calls, without what the engine
    takes once it is imported. Empty if the network cannot be loaded there.
    """
    if not run.file.is_file():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(images, Path(folder) / "images.pt")
        words = [sys.executable, "-m", __name__, run.engine, str(run.file), f"{folder}/images.pt", str(threads)]
        found = subprocess.run(words, capture_output=True, text=True)
    try:
        made: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {}
    return made


def _torch(model: nn.Module, engine: str, images: Tensor) -> Call:
    if engine == "compile":
        if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
            raise CdlibError("compile needs a C++ compiler, and there is none: install g++, or leave the engine out.")
        made: Any = torch.compile(model)
    else:
        made = model

    def call() -> object:
        with torch.no_grad():
            return made(images)

    try:
        call()
    except Exception as error:
        raise CdlibError(f"{engine} cannot run the network: {one_line(error)}.") from error
    return call


def _opened(file: Path, images: Tensor, threads: int, folder: Path | None = None) -> tuple[Call, dict[str, int]]:
    if runner(file) == "executorch":
        return partial(pte_files.loaded(file, threads), images.contiguous()), {}
    fused = folder / "optimized.onnx" if folder else None
    running = session(file, threads, fused)
    kinds = list[str]()
    with contextlib.suppress(ImportError):  # without onnx it is not said what runs
        import onnx

        kinds = [node.op_type for node in onnx.load(fused).graph.node] if fused else []
    call = partial(running.run, None, {running.get_inputs()[0].name: images.numpy()})
    try:
        call()
    except Exception as error:
        takes = ", ".join(f"{given.type} {given.shape}" for given in running.get_inputs())
        raise CdlibError(f"{file} takes {takes}, so it cannot run on {[*images.shape]}: {one_line(error)}.") from error
    return call, dict(Counter(kinds).most_common())


def _resident() -> dict[str, int]:
    """Bytes of resident memory now and at most."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux: the most there ever was, in kilobytes, or on a Mac in bytes
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"now": most, "most": most}
    held = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"now": held["VmRSS"], "most": held["VmHWM"]}


def _fresh(engine: str, file: str, pictures: str, count: str) -> None:
    """What the fresh process does."""
    torch.set_num_threads(int(count))
    images = torch.load(pictures)
    for package in {"onnxruntime": ["onnx", "onnxruntime"], "executorch": ["executorch.runtime"]}.get(engine, []):
        importlib.import_module(package)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most starts anew
    before, start = _resident()["now"], time.perf_counter()
    if engine in ("onnxruntime", "executorch"):
        call, _ = _opened(Path(file), images, int(count))
        loaded = time.perf_counter()
    else:
        model = torch.load(file, weights_only=False)
        loaded = time.perf_counter()
        call = _torch(model, engine, images)
    call()
    first = time.perf_counter()
    for _ in range(9):
        call()
    found = {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (first - loaded)}
    print(json.dumps({**found, "peak_bytes": _resident()["most"] - before}))


if __name__ == "__main__":
    _fresh(*sys.argv[1:])
