"""Networks in engines, clocked as a device engineer would: in turns, from cold, under load, with the doubt stated."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from cdlib import report
from cdlib.edge.engines import Running, affinity, cold, runner, running
from cdlib.edge.onnx_files import THREADS
from cdlib.errors import CdlibError, check_choice, check_whole
from cdlib.train import evaluating

ROUNDS, BATCHES = 10, 4
"""How many rounds a difference needs to be called real; and in how many batches of neighbours they are taken."""
T = (12.71, 4.30, 3.18)  # the 97.5 % quantiles of Student's t, by degrees of freedom from 1


@dataclass(frozen=True)
class Arm:
    """A network in an engine, measured. Times are in milliseconds for a batch."""

    times: np.ndarray = field(repr=False)  #: Of every call, in the order of the rounds that all arms shared.
    throughput: float  #: Images per second under sustained load.
    windows: list[float]  #: The median time in each tenth of that load: they rise if a processor gets hot.
    utilisation: float  #: Of one core, by this process during that load: 1 is one core in full.
    file_bytes: int | None
    operators: dict[str, int]  #: Kinds that run after fusing; empty where the engine does not say.
    in_float: dict[str, int]  #: Products without an integer kernel in an integer network.
    load_ms: float | None = None  #: From the file, in a fresh process; None where it was not measured.
    first_ms: float | None = None  #: The first call there.
    peak_bytes: float | None = None  #: Resident memory there, without the engine's own.


@dataclass(frozen=True)
class Ratio:
    """How many times as long one arm takes as another: the geometric mean of batches' medians of paired rounds."""

    value: float
    low: float  #: Of the 95 % interval, a t interval over batches of rounds,
    high: float
    rounds: int  #: How many there were.

    @property
    def real(self) -> bool:
        """Whether the interval leaves out 1, and comes from at least `ROUNDS` rounds."""
        return self.rounds >= ROUNDS and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        said = "" if self.real else ": no difference shown"
        said += f", by {self.rounds} rounds: take at least {ROUNDS}" if self.rounds < ROUNDS else ""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}){said}"


@dataclass(frozen=True)
class Bench:
    """Arms that took turns on one machine."""

    arms: dict[str, Arm]  #: By the network's name and the engine, as in "dense, eager".
    batch: int
    threads: int
    machine: str
    instructions: list[str] | None
    others: float  #: How many cores other processes kept busy meanwhile.

    @property
    def busy(self) -> bool:
        """Whether other work disturbed the times: over a fifth of a core, or a median over 1.3 times the fastest."""
        return self.others > 0.2 or any(np.median(a.times) > 1.3 * a.times.min() for a in self.arms.values())

    def ratio(self, arm: str, to: str) -> Ratio:
        """Return how many times as long `arm` takes as `to`; a CdlibError if one of them is not there.

        What disturbs a machine lasts for some rounds, so neighbours are alike, and fewer rounds are independent than
        there are. Few long batches of them nearly are, and Student's t over these holds its level also if some are
        noisier (Ibragimov and Müller 2010, Journal of Business & Economic Statistics 28, 453-468). What slows only one
        arm, and for as long as a batch, still looks like a difference: take more rounds.
        """
        for name in (arm, to):
            check_choice("arm", name, self.arms)
        logs = np.log(self.arms[arm].times / self.arms[to].times)
        batches = [np.median(batch) for batch in np.array_split(logs, min(BATCHES, len(logs)))]
        half = T[len(batches) - 2] * np.std(batches, ddof=1) / math.sqrt(len(batches))
        low, value, high = np.exp(np.mean(batches) + half * np.array([-1, 0, 1])).tolist()
        return Ratio(value, low, high, len(logs))

    def table(self) -> pd.DataFrame:
        """Return a row for each arm: milliseconds, images per second, megabytes, cores."""
        mb = 1e6
        rows = {
            name: {
                **{f"p{share} (ms)": np.percentile(arm.times, share) for share in (50, 95, 99)},
                "images/s": arm.throughput,
                "load (ms)": arm.load_ms,
                "first (ms)": arm.first_ms,
                "peak (MB)": arm.peak_bytes and arm.peak_bytes / mb,
                "file (MB)": arm.file_bytes and arm.file_bytes / mb,
                "cores": arm.utilisation,
            }
            for name, arm in self.arms.items()
        }
        return pd.DataFrame(rows).T.astype(float).rename_axis("arm")

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        arms = {name: {**asdict(arm), "times": [round(t, 4) for t in arm.times]} for name, arm in self.arms.items()}
        return {**{key: value for key, value in vars(self).items() if key != "arms"}, "busy": self.busy, "arms": arms}

    def __str__(self) -> str:
        first = next(iter(self.arms))
        lines = [f"{self.machine}, batch {self.batch}, {self.threads} thread(s)", self.table().round(3).to_string()]
        lines += [f"{name} / {first}: {self.ratio(name, first)}" for name in self.arms if name != first]
        lines += [f"{name}: in float32 {arm.in_float}" for name, arm in self.arms.items() if arm.in_float]
        if self.busy:
            lines.append(f"The machine was busy ({self.others:.1f} cores by others): the times are too long.")
        return "\n".join(lines)


def bench(
    networks: Mapping[str, nn.Module | str | Path],
    images: Tensor,
    *,
    engines: Iterable[str] = ("eager", "onnxruntime"),
    threads: int = 1,
    cores: tuple[int, ...] | None = None,
    runs: int = 100,
    sustained: float = 1.0,
    fresh: bool = True,
    progress: bool = False,
) -> Bench:
    """Measure networks in engines, all of them in turns.

    Parameters
    ----------
    networks : mapping of str to nn.Module or path
        By name. A path is that of a file: an ONNX file runs in onnxruntime only, a ``.pte`` in ExecuTorch only.
    images : Tensor [n, ...]
        The batch they are called with.
    engines : iterable of str, default eager and onnxruntime
        Of `ENGINES`; each network runs in each that can take it.
    threads : int, default 1
        Of every engine.
    cores : tuple of int, optional
        On which alone this process may run meanwhile.
    runs : int, default 100
        Rounds; in each, every arm is called once. Fewer than `ROUNDS` show no difference.
    sustained : float, default 1
        Seconds of unbroken load for each arm afterwards; some minutes show whether the machine gets hot.
    fresh : bool, default True
        Whether a cold start and the peak of memory are measured, each in a process of its own.
    progress : bool, default False

    Raises
    ------
    CdlibError
        If there is nothing to measure, a value is out of range, or an engine cannot run a network.
    """
    check_whole("runs", runs, 2)
    check_whole("threads", threads, 1, THREADS)
    if not (sustained > 0 and math.isfinite(sustained)):
        raise CdlibError(f"sustained={sustained!r}: give a finite number of seconds, more than 0.")
    wanted = list(engines)
    with ExitStack() as stack:
        stack.enter_context(evaluating(*(network for network in networks.values() if isinstance(network, nn.Module))))
        stack.enter_context(report.threads(threads))
        stack.enter_context(affinity(cores))
        ready: dict[str, Running] = {}
        for name, network in networks.items():
            for engine in wanted:
                if isinstance(network, nn.Module) or engine == runner(Path(network)):
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    ready[f"{name}, {engine}"] = running(network, engine, images, threads, folder)
        if not ready:
            raise CdlibError(f"nothing to measure: {len(networks)} networks in {', '.join(wanted) or 'no engine'}.")
        before = _spent()
        times = report.interleaved({name: arm.call for name, arm in ready.items()}, runs=runs, progress=progress)
        loads = {name: _load(arm, sustained, len(images)) for name, arm in ready.items()}
        others = _others(before, _spent())
        starts: dict[str, Any] = {name: cold(arm, images, threads) if fresh else {} for name, arm in ready.items()}
        return Bench(
            {
                name: Arm(
                    times[name],
                    **loads[name],
                    file_bytes=arm.file.stat().st_size if arm.file.is_file() else None,
                    operators=arm.operators,
                    in_float=arm.in_float,
                    **starts[name],
                )
                for name, arm in ready.items()
            },
            len(images),
            threads,
            report.machine(),
            report.instructions(),
            others,
        )


def _load(arm: Running, seconds: float, batch: int) -> dict[str, Any]:
    """Call without a pause, and say what came of it."""
    taken, used = list[float](), time.process_time()
    start = last = time.perf_counter()
    while last - start < seconds or len(taken) < 10:
        arm.call()
        now = time.perf_counter()
        taken.append(now - last)
        last = now
    windows = [1e3 * float(np.median(part)) for part in np.array_split(taken, 10)]
    utilisation = (time.process_time() - used) / (last - start)
    return {"throughput": batch * len(taken) / (last - start), "windows": windows, "utilisation": utilisation}


def _spent() -> tuple[float, float, float]:
    """Seconds on the clock, of all cores together at work, and of this process."""
    import psutil

    all_ = psutil.cpu_times()
    idle = all_.idle + getattr(all_, "iowait", 0) + getattr(all_, "guest", 0)
    return time.perf_counter(), sum(all_) - idle, sum(os.times()[:4])


def _others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    clock, worked, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, (worked - own) / clock)
