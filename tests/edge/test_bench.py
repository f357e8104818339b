"""Networks in engines: known times, known statistics, what runs in integers, and what cannot be measured."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cdlib import CdlibError, data, models
from cdlib.cli.app import app
from cdlib.edge import Arm, Bench, Deployed, bench, energy, export
from cdlib.edge.engines import affinity
from cdlib.quantization import static

pytest.importorskip("onnxruntime")
SAMPLE = data.load("cifar10-sample")
ONE = SAMPLE.test.input(1)


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.layer = seconds, nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(x)


def arm(times: np.ndarray) -> Arm:
    return Arm(times, 1.0, [1.0] * 10, 1.0, None, {}, {})


def of(**times: np.ndarray) -> Bench:
    return Bench({name: arm(values) for name, values in times.items()}, 1, 1, "here", [], 0.0)


def test_a_network_that_sleeps_takes_that_long() -> None:
    two = {"short": Sleeper(0.005), "long": Sleeper(0.02)}
    found = bench(two, torch.zeros(1, 4), engines=["eager"], runs=15, sustained=0.1, fresh=False)
    medians = {name: float(np.median(arm.times)) for name, arm in found.arms.items()}
    assert 20 <= medians["long, eager"] <= 30 and 5 <= medians["short, eager"] <= 10
    longer = found.ratio("long, eager", "short, eager")
    assert longer.real and 2 < longer.low <= longer.value <= longer.high
    assert found.arms["long, eager"].utilisation < 0.5  # it sleeps
    assert 30 < found.arms["long, eager"].throughput <= 50 and len(found.arms["long, eager"].windows) == 10


def test_no_difference_is_called_real_that_chance_makes() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(of(a=rng.lognormal(size=60), b=rng.lognormal(size=60)).ratio("a", "b").real for _ in range(100))
    assert wrong <= 12  # five of a hundred are expected, by the level
    same = of(a=np.arange(1.0, 50.0), b=np.arange(1.0, 50.0)).ratio("a", "b")
    assert (same.value, same.real) == (1.0, False) and "no difference shown" in str(same)
    pairs = [of(a=2 * rng.lognormal(0, 0.1, 200), b=rng.lognormal(0, 0.1, 200)).ratio("a", "b") for _ in range(200)]
    wide = 2 * 3.18 * 0.921 * np.sqrt(np.pi / 2 * 2 * 0.1**2 / 200)  # t, E(s) of four, and s of a median of 200 paired
    assert np.mean([np.log(pair.high / pair.low) for pair in pairs]) == pytest.approx(wide, rel=0.1)
    assert all(pair.real for pair in pairs) and sum(pair.low < 2 < pair.high for pair in pairs) >= 180


def test_a_common_disturbance_of_a_round_is_common_to_both() -> None:
    """Arms take turns: what slows a whole round does not widen the interval."""
    drift = np.repeat([1.0, 3.0], 50)
    paired = of(a=1.1 * drift, b=drift).ratio("a", "b")
    assert paired.real and paired.value == pytest.approx(1.1) and paired.high - paired.low < 0.01


def test_a_busy_machine_is_said_to_be() -> None:
    quiet = of(a=np.linspace(1, 1.1, 40))
    assert not quiet.busy and replace(quiet, others=0.9).busy and of(a=np.append(1.0, np.full(9, 2.0))).busy
    assert "busy" in str(replace(quiet, others=0.9)) and "busy" not in str(quiet)


def test_integer_networks_name_their_kernels(tmp_path: Path) -> None:
    dense = models.trained("plain-16")
    export(static(dense, SAMPLE.train.sample(100, 0)), SAMPLE.test.input(8), tmp_path / "small.onnx")
    half = static(dense, SAMPLE.train.sample(100, 0), keep=["features.9"])
    given: dict[str, Any] = {"whole": dense, "small": tmp_path / "small.onnx", "half": half}
    found = bench(given, ONE, engines=["onnxruntime"], runs=3, sustained=0.05, fresh=False)
    whole, small, one_left = (found.arms[f"{name}, onnxruntime"] for name in given)
    assert whole.in_float == {} and small.in_float == {} and small.operators["QLinearConv"] == 7
    assert one_left.operators["QLinearConv"] == 6 and sum(one_left.in_float.values()) == 1
    assert small.file_bytes == (tmp_path / "small.onnx").stat().st_size
    text = str(found)
    assert "half, onnxruntime: in float32" in text and "small, onnxruntime / whole, onnxruntime:" in text


def test_peak_memory_holds_the_weights() -> None:
    heavy = nn.Sequential(nn.Linear(4, 5_000_000), nn.Flatten(0), nn.Unflatten(0, (1, -1)))
    net = {"heavy": nn.Sequential(heavy, nn.AdaptiveAvgPool1d(2)), "light": nn.Linear(4, 2)}
    found = bench(net, torch.zeros(1, 4), engines=["eager"], runs=2, sustained=0.01)
    peaks = {name: found.arms[f"{name}, eager"].peak_bytes or 0 for name in net}
    assert peaks["heavy"] > 4 * 25_000_000 > 20 * max(peaks["light"], 0) / 4
    assert (found.arms["heavy, eager"].load_ms or 0) > (found.arms["light, eager"].load_ms or 0)


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spoilt.onnx").write_bytes(b"nothing")
    net = {"net": nn.Linear(4, 2)}
    x = torch.zeros(1, 4)
    for act, message in {
        lambda: bench(net, x, engines=["eagre"]): "did you mean 'eager'",
        lambda: bench({}, x): "nothing to measure",
        lambda: bench({"a": tmp_path / "spoilt.onnx"}, x, engines=["eager"]): "nothing to measure: 1 networks in eager",
        lambda: bench({"a": tmp_path / "spoilt.onnx"}, x): "not a network that onnxruntime can run",
        lambda: bench(net, torch.zeros(1, 5), engines=["eager"]): "eager cannot run the network",
        lambda: bench(net, x, runs=1): "runs=1",
        lambda: bench(net, x, threads=0): "threads=0",
        lambda: bench(net, x, threads=1_000_000): "threads=1000000",
        lambda: Deployed(tmp_path / "spoilt.onnx", threads=1_000_000): "threads=1000000",
        lambda: bench(net, x, sustained=0): "sustained=0",
        lambda: bench(net, x, sustained=float("inf")): "sustained=inf",
        lambda: bench(net, x, sustained=float("nan")): "sustained=nan",
        lambda: energy(lambda: None, watts=-5): "watts=-5",
        lambda: energy(lambda: None, watts=float("nan")): "watts=nan",
        lambda: energy(lambda: None, seconds=float("inf"), watts=5): "seconds=inf",
        lambda: bench(net, x, cores=(999,)): "affinity=",
        lambda: of(a=np.ones(3)).ratio("a", "b"): "unknown arm 'b'",
    }.items():
        with pytest.raises(CdlibError, match=message) as error:
            act()
        assert "\n" not in str(error.value)


def test_compile_wants_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CdlibError, match="needs a C\\+\\+ compiler"):
        bench({"net": nn.Linear(4, 2)}, torch.zeros(1, 4), engines=["compile"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with affinity((min(before),)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


class Counter:
    """Counters that go on by a joule with each call."""

    def __init__(self, folder: Path, start: int) -> None:
        self.zone = folder / "intel-rapl:0"
        self.zone.mkdir()
        (folder / "intel-rapl:0:0").mkdir()  # a part of the package, which must not be counted twice
        (folder / "intel-rapl:0:0" / "energy_uj").write_text("5")
        (self.zone / "max_energy_range_uj").write_text("999999999")
        self.value = start
        self()
        self.calls = 0

    def __call__(self) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        (self.zone / "energy_uj").write_text(str(self.value % 1_000_000_000))
        self.value += 1_000_000


@pytest.mark.parametrize("start", [0, 999_500_000])
def test_joules_are_read_from_the_counter_also_when_it_starts_over(tmp_path: Path, start: int) -> None:
    counter = Counter(tmp_path, start)
    counter.value = start + 1_000_000
    found = energy(counter, seconds=0.02, root=tmp_path)
    assert found.how == "measured" and found.joules == pytest.approx(1.0) and counter.calls >= 1


def test_without_a_counter_joules_are_estimated_or_refused(tmp_path: Path) -> None:
    with pytest.raises(CdlibError, match="does not exist here: give watts="):
        energy(lambda: None, root=tmp_path)
    cores = os.cpu_count() or 1
    found = energy(lambda: time.sleep(0.01), seconds=0.2, watts=100.0 * cores, root=tmp_path)
    assert found.how == "estimated" and f"{100 * cores} W" in found.method and len(found.utilisation) >= 5
    assert found.joules < 0.5  # asleep: of 1 J that a core would take in 10 ms, little

    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    assert energy(work, seconds=0.1, watts=100.0 * cores, root=tmp_path).joules == pytest.approx(2.0, rel=0.2)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    run = CliRunner().invoke(
        app, ["bench", "plain-16", "--engine", "eager", "--runs", "3", "--sustained", "0.05", "--json"]
    )
    assert run.exit_code == 0 and '"plain-16, eager"' in run.stdout
    bad = CliRunner().invoke(app, ["bench", "plain-16", "--affinity", "a"])
    assert bad.exit_code == 2


def test_few_rounds_show_nothing() -> None:
    few, enough = (of(a=np.full(n, 2.0), b=np.ones(n)).ratio("a", "b") for n in (9, 10))
    assert enough.real and not few.real and "take at least 10" in str(few)


def test_rounds_that_are_like_their_neighbours_count_for_less() -> None:
    """Bursts of four rounds: shuffled, the same times are as many independent ones, with a narrower interval."""
    rng = np.random.default_rng(0)
    one, other = (np.repeat(rng.lognormal(size=50), 4) for _ in range(2))
    order = rng.permutation(200)
    bursts, single = of(a=one, b=other).ratio("a", "b"), of(a=one[order], b=other[order]).ratio("a", "b")
    assert bursts.high - bursts.low > 1.3 * (single.high - single.low)


def disturbed(rng: np.random.Generator, rounds: int, share: float = 0.3, last: float = 10) -> np.ndarray:
    """Times that double in bursts, which take a share of all rounds and last for ten on average."""
    burst, states = rng.random() < share, list[bool]()
    for chance in rng.random(rounds):
        states.append(burst)
        burst = chance >= 1 / last if burst else chance < share / (1 - share) / last
    return rng.lognormal(0, 0.03, rounds) * np.where(states, 2.0, 1.0)


def test_bursts_are_not_called_a_difference_and_do_not_hide_one() -> None:
    rng = np.random.default_rng(0)
    for rounds in (20, 60, 300):
        pairs = [of(a=disturbed(rng, rounds), b=disturbed(rng, rounds)) for _ in range(200)]
        assert sum(pair.ratio("a", "b").real for pair in pairs) <= 20  # of a burst an arm: the worst case
    found = 0
    for _ in range(100):
        both = disturbed(rng, 60)  # in turns, both are hit
        pair = of(a=1.05 * both * rng.lognormal(0, 0.03, 60), b=both * rng.lognormal(0, 0.03, 60))
        found += pair.ratio("a", "b").real
    assert found >= 95


def test_the_callers_network_keeps_its_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Dropout())
    before = [module.training for module in net.modules()]
    mean = net[1].running_mean.clone()
    bench({"net": net}, torch.ones(2, 4), engines=["eager", "onnxruntime"], runs=2, sustained=0.01, fresh=False)
    assert [module.training for module in net.modules()] == before and torch.equal(net[1].running_mean, mean)


def test_files_that_the_images_do_not_fit_are_one_line(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make, FLOAT, INT = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

    def foreign(name: str, kind: int, n: object, inputs: int) -> Path:
        given = [make.make_tensor_value_info(f"x{i}", kind, [n, 3, 32, 32]) for i in range(inputs)]
        nodes = [make.make_node("Sum" if kind == FLOAT else "Abs", [f"x{i}" for i in range(inputs)], ["y"])]
        graph = make.make_graph(nodes, "g", given, [make.make_tensor_value_info("y", kind, [n, 3, 32, 32])])
        made = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
        onnx.save(made, file := tmp_path / f"{name}.onnx")
        return file

    cases = {
        foreign("two", FLOAT, "n", 2): ONE,
        foreign("int", INT, "n", 1): ONE,
        foreign("fixed", FLOAT, 1, 1): SAMPLE.test.input(4),
        foreign("small", FLOAT, "n", 1): torch.zeros(1, 1, 8, 8),
    }
    for file, images in cases.items():
        with pytest.raises(CdlibError, match=f"{file.name} takes tensor.*cannot run on") as error:
            bench({"net": file}, images, runs=2, sustained=0.01, fresh=False)
        assert "\n" not in str(error.value)
    shapes = ("--input", "1x8x8", "--runs", "2", "--sustained", "0.01")
    for words in (("fixed.onnx", "small.onnx", *shapes), ("small.onnx", *shapes), ("plain-16", "--batch", "100000000")):
        given = [str(tmp_path / word) if word.endswith(".onnx") else word for word in words]
        done = CliRunner().invoke(app, ["bench", *given])
        assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
