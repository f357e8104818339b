"""The stopwatch takes turns, the allocator's account is the allocator's, and nothing is left changed."""

from __future__ import annotations

import gc
import io
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdlib import report
from cdlib.errors import CdlibError
from cdlib.report import timing

X = (torch.zeros(1, 4),)


class Slow(nn.Module):
    """Takes the given milliseconds, one after the other, by a clock of its own, and notes when it was called."""

    def __init__(self, name: str, clock: list[int], log: list[str], times: list[float]) -> None:
        super().__init__()
        self.name, self.clock, self.log, self.times = name, clock, log, times
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert not gc.isenabled()
        self.log.append(self.name)
        self.clock[0] += round(1e6 * self.times[self.calls % len(self.times)])
        self.calls += 1
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter_ns=lambda: now[0]))
    return now


def test_models_take_turns_and_each_begins_as_often(clock: list[int]) -> None:
    log: list[str] = []
    models = {name: Slow(name, clock, log, [1.0]) for name in "abc"}
    report.latencies(models, X, runs=6)
    counted = log[3 * report.WARM_UP :]
    rounds = [tuple(counted[i : i + 3]) for i in range(0, len(counted), 3)]
    assert [set(r) for r in rounds] == [{"a", "b", "c"}] * 6
    assert Counter(r[0] for r in rounds) == {"a": 2, "b": 2, "c": 2}


def test_each_models_own_times_are_returned_in_order_without_the_warm_up(clock: list[int]) -> None:
    log: list[str] = []
    warm = [100.0] * report.WARM_UP
    models = {
        "slow": Slow("slow", clock, log, [*warm, 5.0, 6.0, 7.0]),
        "fast": Slow("fast", clock, log, [*warm, 1.0, 2.0, 3.0]),
    }
    times = report.latencies(models, X, runs=3)
    assert times["slow"].tolist() == [5.0, 6.0, 7.0]
    assert times["fast"].tolist() == [1.0, 2.0, 3.0]
    assert gc.isenabled()


@pytest.mark.parametrize(("names", "runs"), [("", 5), ("a", 0)])
def test_nothing_to_time_is_an_error(clock: list[int], names: str, runs: int) -> None:
    with pytest.raises(CdlibError, match="nothing to time"):
        report.latencies({name: Slow(name, clock, [], [1.0]) for name in names}, X, runs=runs)


class Spread(nn.Module):
    """Holds its input (4 bytes), 4 MB, and 8 MB at once; then only the 8 MB and their sum."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.repeat(1_000_000)
        wider = wide.repeat(2)
        del wide
        return wider.sum()


def test_the_allocators_peak_is_what_was_held_at_once() -> None:
    held = 4 + 4_000_000 + 8_000_000
    peak = report.allocator_peak(Spread(), (torch.ones(1),))
    assert peak is not None
    assert held <= peak < held + 1000


def test_memory_that_was_there_before_is_not_counted() -> None:
    model = nn.Linear(1000, 1000)
    peak = report.allocator_peak(model, (torch.zeros(1, 1000),))
    assert peak is not None
    assert 8_000 <= peak < 50_000  # input and output, no weights (4 MB)


def test_a_files_size_is_that_of_the_file_torch_writes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert report.file_bytes(model) == len(file.getvalue())


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), report.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with report.threads(None):
        assert torch.get_num_threads() == before
    with pytest.raises(CdlibError, match="threads=0: give an integer of at least 1"), report.threads(0):
        pass


def test_the_machine_is_named_with_its_threads() -> None:
    with report.threads(1):
        line, hardware = report.machine(), report.hardware()
    assert "1 torch thread(s)" in line
    assert str(hardware["cpu"]) in line
    assert hardware["threads"] == 1
    assert hardware["cpu"]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").lower() if Path("/proc/cpuinfo").exists() else ""
    for name in hardware["instructions"] or ():
        assert re.search(rf"\b{name}\b", flags)
    with report.threads(2):
        assert report.machine() != line


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_peak_is_the_gpus() -> None:
    peak = report.allocator_peak(Spread().cuda(), (torch.ones(1, device="cuda"),))
    assert peak is not None
    assert peak >= 0
    times = report.latencies({"a": nn.Linear(4, 4).cuda()}, X, runs=3)["a"]
    assert times.shape == (3,)
    assert np.all(times > 0)
    assert torch.cuda.get_device_name() in report.machine("cuda")
