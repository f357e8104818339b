"""Before and after: every figure by hand where it can be, and only the right ones move."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdlib import data, report
from cdlib.errors import CdlibError
from cdlib.report import measurement

COUNTS = ("params", "nonzero_params", "macs", "weight_bytes", "peak_activation_bytes")


def network() -> nn.Sequential:
    """4 filters of 3x3 on 1x8x8, then 10 classes: small enough to count by hand."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


@pytest.fixture(scope="module")
def split() -> data.Split:
    return data.load("digits").test


@pytest.fixture(scope="module")
def dense() -> nn.Sequential:
    return network()


@pytest.fixture(scope="module")
def sparse(dense: nn.Sequential) -> nn.Sequential:
    model = copy.deepcopy(dense)
    with torch.no_grad():
        model[3].weight[:, :128] = 0
    return model


@pytest.fixture(scope="module")
def int8(dense: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(dense, {nn.Linear})


@pytest.fixture(scope="module")
def measured(dense: nn.Module, sparse: nn.Module, int8: nn.Module, split: data.Split) -> dict[str, report.Measurement]:
    return report.measure({"dense": dense, "sparse": sparse, "int8": int8}, split, runs=6, threads=1)


def test_the_figures_of_a_network_counted_by_hand(measured: dict[str, report.Measurement], split: data.Split) -> None:
    dense = measured["dense"]
    assert dense.params == dense.nonzero_params == (9 * 4 + 4) + (256 * 10 + 10)
    assert dense.macs == 9 * 4 * 64 + 256 * 10
    assert dense.weight_bytes == 4 * dense.params
    assert dense.peak_activation_bytes == 4 * (256 + 256)  # the convolution's output and the ReLU's
    assert dense.peak_memory_bytes is not None
    assert dense.peak_memory_bytes >= dense.peak_activation_bytes
    assert dense.input_shape == (1, 1, 8, 8)
    assert dense.data == f"digits/test {split.fingerprint}"
    assert 0 < dense.latency_p50_ms <= dense.latency_p95_ms
    assert dense.runs == 6
    assert "1 torch thread(s)" in dense.machine


def test_each_accuracy_is_that_of_the_networks_own_answers(
    measured: dict[str, report.Measurement], dense: nn.Module, sparse: nn.Module, split: data.Split
) -> None:
    for name, model in (("dense", dense), ("sparse", sparse)):
        with torch.no_grad():
            expected = model(split.input(len(split))).argmax(1) == split.labels
        assert torch.equal(measured[name].correct, expected)
        assert measured[name].accuracy == pytest.approx(expected.double().mean().item())
    assert not torch.equal(measured["dense"].correct, measured["sparse"].correct)


def test_percentiles_are_over_the_runs(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(measurement, "latencies", lambda *_, **__: {"dense": np.arange(1.0, 102.0)})
    result = report.measure({"dense": dense}, None, example_input=torch.zeros(1, 1, 8, 8))["dense"]
    assert (result.latency_p50_ms, result.latency_p95_ms) == (51.0, 96.0)


def test_zeros_move_the_non_zeros_and_nothing_else(measured: dict[str, report.Measurement]) -> None:
    comparison = report.compare(measured["dense"], measured["sparse"])
    change = comparison.frame["change"]
    assert change["nonzero_params"] == -1280
    still = ["file_bytes", "params", "macs", "weight_bytes", "peak_activation_bytes", "peak_memory_bytes"]
    assert (change[still] == 0).all()


def test_int8_moves_the_bytes_and_not_the_counts(measured: dict[str, report.Measurement]) -> None:
    before, after = measured["dense"], measured["int8"]
    assert (after.params, after.macs) == (before.params, before.macs)
    saved = 3 * 256 * 10  # each weight of the linear layer takes one byte instead of four
    assert before.weight_bytes - saved <= after.weight_bytes < before.weight_bytes - saved + 200
    assert after.file_bytes < before.file_bytes
    assert after.accuracy == pytest.approx(before.accuracy, abs=0.03)


def test_a_comparison_is_before_after_and_both_changes(measured: dict[str, report.Measurement]) -> None:
    before = measured["dense"]
    after = dataclasses.replace(before, name="half", params=1305, accuracy=0.25, correct=None)
    before = dataclasses.replace(before, accuracy=0.5, correct=None)
    frame = report.compare(before, after).frame
    assert list(frame.index) == list(report.QUANTITIES)
    assert list(frame.columns) == ["before", "after", "change", "relative"]
    assert frame.loc["params"].tolist() == [2610, 1305, -1305, -0.5]
    assert isinstance(frame.loc["params", "before"], int)
    assert frame.loc["accuracy"].tolist() == [0.5, 0.25, -0.25, -0.5]


def test_the_text_has_units_and_points(measured: dict[str, report.Measurement]) -> None:
    correct = torch.arange(200) < 100
    before = dataclasses.replace(
        measured["dense"], accuracy=0.5, correct=correct, file_bytes=2_000_000, latency_p50_ms=2.0
    )
    after = dataclasses.replace(before, name="after", accuracy=0.495, file_bytes=500_000, latency_p50_ms=3.0)
    after = dataclasses.replace(after, correct=torch.arange(200) < 99)
    comparison = report.compare(before, after)
    text = comparison.text()
    assert text.loc["accuracy"].tolist() == ["50.00 %", "49.50 %", "-0.50 points"]
    assert text.loc["file"].tolist() == ["2 MB", "500 kB", "-1.5 MB (-75.0 %)"]
    assert text.loc["parameters"].tolist() == ["2.61 k", "2.61 k", "unchanged"]
    assert text.loc["latency p50"].tolist() == ["2 ms", "3 ms", "+1 ms (+50.0 %)"]
    whole = str(comparison)
    for part in (
        "dense -> after",
        "input 1x1x8x8; 6 runs",
        "95 % intervals 43.14-56.86 %",
        "1 lost, 0 gained",
        "too little",
    ):
        assert part in whole
    assert "-0.50 points" in comparison._repr_html_()


def test_the_test_says_whether_the_images_suffice(measured: dict[str, report.Measurement]) -> None:
    right = torch.ones(100, dtype=torch.bool)
    before = dataclasses.replace(measured["dense"], correct=right, accuracy=1.0)
    for lost, enough in ((5, False), (6, True)):
        after = dataclasses.replace(before, correct=torch.arange(100) >= lost, accuracy=1 - lost / 100)
        paired = report.compare(before, after).paired
        assert paired is not None
        assert (paired.lost, paired.gained, paired.enough_data) == (lost, 0, enough)
    interval = before.interval()
    assert interval is not None
    assert interval[1] == 1.0
    assert interval[0] == pytest.approx(0.963, abs=1e-3)


def test_without_a_split_there_is_no_accuracy(dense: nn.Module, sparse: nn.Module) -> None:
    x = torch.zeros(2, 1, 8, 8)
    result = report.measure({"a": dense, "b": sparse}, None, example_input=x, runs=1)
    comparison = report.compare(result["a"], result["b"])
    assert result["a"].input_shape == (2, 1, 8, 8)
    assert result["a"].macs == 4864  # for one sample
    assert result["a"].accuracy is result["a"].correct is result["a"].data is result["a"].interval() is None
    assert comparison.paired is None
    assert "accuracy" not in comparison.frame.index
    assert "accuracy (%)" not in report.table(result)
    assert "McNemar" not in str(comparison)


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.linear(one + other)


def test_a_network_of_several_inputs() -> None:
    inputs = (torch.zeros(1, 4), torch.zeros(1, 4))
    result = report.measure({"sum": Sum()}, None, example_input=inputs, runs=1)["sum"]
    assert result.input_shape == ((1, 4), (1, 4))
    assert result.macs == 8
    assert "input 1x4, 1x4" in str(report.compare(result, result))


class Nested(nn.Module):
    """A tensor in a dictionary, a number, None, and a list by name."""

    def __init__(self, **kind: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, **kind)

    def forward(self, x: dict[str, Tensor], scale: float, nothing: None, *, shift: list[Any]) -> Tensor:
        assert nothing is None
        return self.linear(x["x"]) * scale + shift[0][1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_measures_whatever_profile_takes(device: str) -> None:
    """Nests, arguments by name, and inputs without numbers, which are measured as zeros."""
    x, shift = torch.ones(2, 4, device=device), torch.ones(2, 3, device=device)
    given = {"example_input": ({"x": x}, 2.0, None), "kwargs": {"shift": [(1, shift)]}}
    result = report.measure({"nested": Nested()}, None, **given, runs=2)["nested"]
    assert (result.params, result.macs, result.runs) == (15, 12, 2) and result.input_shape == ((2, 4), (2, 3))
    assert result.latency_p50_ms is not None and result.peak_memory_bytes is not None
    assert result.peak_memory_bytes >= 4 * (8 + 6 + 6)
    only = report.measure({"sum": Sum()}, None, example_input=(), kwargs={"one": x, "other": x}, runs=1)["sum"]
    assert only.macs == 8
    lstm = report.measure({"lstm": nn.LSTM(5, 7)}, None, example_input=torch.ones(11, 3, 5), batch_dim=1, runs=1)
    assert lstm["lstm"].macs == 11 * 4 * 7 * (5 + 7)


def test_a_network_without_numbers_is_counted_only(split: data.Split, dense: nn.Module) -> None:
    x = torch.zeros(1, 1, 8, 8)
    hollow = copy.deepcopy(dense).to("meta")
    result = report.measure({"hollow": hollow, "dense": dense}, None, example_input=x, runs=2)
    found, full = result["hollow"], result["dense"]
    assert (found.params, found.macs, found.weight_bytes) == (full.params, full.macs, full.weight_bytes)
    assert found.peak_activation_bytes == full.peak_activation_bytes and found.runs == 0
    unknown = (found.nonzero_params, found.file_bytes, found.latency_p50_ms, found.latency_p95_ms)
    assert unknown == (None,) * 4 and found.peak_memory_bytes is None and "meta" in found.machine
    comparison = report.compare(found, found)
    assert list(comparison.frame.index) == ["params", "macs", "weight_bytes", "peak_activation_bytes"]
    assert "p50 (ms)" not in report.table({"hollow": found}) and "0 runs" in str(comparison)
    with pytest.raises(CdlibError, match="machines or threads"):
        report.compare(found, full)
    with pytest.raises(CdlibError, match="the model is on the meta device, where 0.weight has no numbers"):
        report.measure({"hollow": hollow}, split)
    with pytest.raises(CdlibError, match="model 'a' is on the meta device"):
        report.latencies({"a": hollow}, x)
    with pytest.raises(CdlibError, match="the model is on the meta device"):
        report.allocator_peak(hollow, x)


def test_measuring_changes_nothing(split: data.Split) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
    model.train()
    model[1].eval()
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    report.measure({"model": model}, split, runs=2, threads=threads + 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("data", "digits/test 0000", "data"),
        ("data", None, "data"),
        ("input_shape", (1, 3, 32, 32), "inputs"),
        ("machine", "Another CPU, 64 cores, 1 torch thread(s)", "machines or threads"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(
    measured: dict[str, report.Measurement], field: str, value: Any, what: str
) -> None:
    other = dataclasses.replace(measured["sparse"], **{field: value})
    with pytest.raises(CdlibError, match=f"cannot compare 'dense' with 'sparse': measured on different {what}"):
        report.compare(measured["dense"], other)
    with pytest.raises(CdlibError, match=f"different {what}"):
        report.table({"dense": measured["dense"], "sparse": other})


def test_other_threads_are_another_machine(dense: nn.Module) -> None:
    x = torch.zeros(1, 1, 8, 8)
    one, two = (report.measure({"m": dense}, None, example_input=x, runs=1, threads=n)["m"] for n in (1, 2))
    with pytest.raises(CdlibError, match="machines or threads"):
        report.compare(one, two)


def test_latencies_of_separate_runs_are_marked(dense: nn.Module, measured: dict[str, report.Measurement]) -> None:
    x = torch.zeros(1, 1, 8, 8)
    one, two = (report.measure({"m": dense}, None, example_input=x, runs=1)["m"] for _ in range(2))
    assert not report.compare(one, two).interleaved
    assert "separate runs" in str(report.compare(one, two))
    assert report.compare(measured["dense"], measured["int8"]).interleaved


def test_the_common_table(measured: dict[str, report.Measurement]) -> None:
    table = report.table(measured, nominal={"sparse": "50 % of a layer", "int8": "8 bits"})
    assert list(table.index) == ["dense", "sparse", "int8"]
    assert table["nominal"].tolist() == ["", "50 % of a layer", "8 bits"]
    assert table["parameters (M)"].tolist() == [0.00261] * 3
    assert table.loc["sparse", "non-zero (M)"] == 0.00133
    assert table["MACs (M)"].tolist() == [0.004864] * 3
    assert table.loc["dense", "accuracy (%)"] == pytest.approx(100 * measured["dense"].accuracy, abs=0.01)
    with pytest.raises(CdlibError, match="unknown model 'int9'; did you mean 'int8'"):
        report.table(measured, nominal={"int9": "9 bits"})
    with pytest.raises(CdlibError, match="no measurements"):
        report.table({})


@pytest.mark.parametrize(
    ("fastest", "p50", "p95", "disturbed"),
    [
        (1.0, 1.3, 2.6, False),
        (1.0, 1.31, 2.0, True),  # half of the runs were slow
        (1.0, 1.0, 2.01, True),  # one in 20 was very slow
        (0.0125, 0.0130, 0.0201, False),
        (None, None, None, False),
    ],
)
def test_times_of_a_busy_machine_are_marked(
    measured: dict[str, report.Measurement],
    fastest: float | None,
    p50: float | None,
    p95: float | None,
    disturbed: bool,
) -> None:
    times = {"latency_fastest_ms": fastest, "latency_p50_ms": p50, "latency_p95_ms": p95}
    quiet = dataclasses.replace(
        measured["dense"], latency_fastest_ms=2.0, latency_p50_ms=2.25, latency_p95_ms=3.0, macs=1_234_567_890
    )
    table = report.table({"<quiet>": quiet, "other": dataclasses.replace(quiet, **times)})
    assert table.disturbed == ["other"] * disturbed
    text, html = table.text(), table._repr_html_()
    assert text.loc["<quiet>", ["MACs (M)", "p50 (ms)", "p95 (ms)"]].tolist() == ["1230", "2.25", "3.00"]
    assert [cell.endswith("*") for cell in text.loc["other"]] == [disturbed and "(ms)" in title for title in text]
    for shown in (html, str(table)):
        assert ("The machine was busy" in shown and "cdlib results" in shown) == disturbed
        assert ("*" in shown) == disturbed
    assert html.count("<td>") == text.size and '<th scope="row">&lt;quiet&gt;</th>' in html
    assert table["p50 (ms)"].tolist()[0] == 2.25  # a number, whatever is shown


def test_the_fastest_run_is_the_shortest(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(measurement, "latencies", lambda *_, **__: {"dense": np.array([3.0, 1.5, 2.0])})
    result = report.measure({"dense": dense}, None, example_input=torch.zeros(1, 1, 8, 8))["dense"]
    assert (result.latency_fastest_ms, result.disturbed) == (1.5, True)


def test_the_quantities_fit_into_a_record(measured: dict[str, report.Measurement]) -> None:
    from cdlib.study.store import checked

    values = measured["dense"].quantities()
    assert checked(values, "metrics") == values
    assert set(values) == set(report.QUANTITIES)


def test_a_given_file_is_what_is_weighed(dense: nn.Module, tmp_path: Path) -> None:
    artefact = tmp_path / "model.onnx"
    artefact.write_bytes(b"x" * 1234)
    x = torch.zeros(1, 1, 8, 8)
    result = report.measure({"a": dense, "b": dense}, None, example_input=x, files={"a": artefact}, runs=1)
    assert result["a"].file_bytes == 1234
    assert result["b"].file_bytes == report.file_bytes(dense)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"a": network()}, {"example_input": None}, "neither a split nor an example_input"),
        ({}, {}, "nothing to time: 0 models"),
        ({"a": network()}, {"runs": 0}, "and 0 runs"),
        ({"a": nn.LazyLinear(3)}, {}, "weight has no shape yet: run the network once"),
        ({"a": network()}, {"kwargs": [1]}, "kwargs is 'list'; pass a dict"),
        ({"a": network()}, {"threads": 0}, "threads=0: give an integer of at least 1"),
        ({"a": "resnet18"}, {}, "model 'a' is 'str', not a torch.nn.Module"),
        ({"a": network()}, {"example_input": torch.zeros(1, 3, 8, 8)}, "model 'a': "),
        ({"a": network()}, {"files": {"a": Path("missing.pt")}}, "file of model 'a' not found: missing.pt"),
        ({"net": network()}, {"files": {"nett": Path("x")}}, "unknown model 'nett'; did you mean 'net'"),
    ],
)
def test_bad_input_is_one_clear_line(models: Any, options: dict[str, Any], message: str) -> None:
    given = {"example_input": torch.zeros(1, 1, 8, 8), "runs": 1, **options}
    with pytest.raises(CdlibError, match=message) as caught:
        report.measure(models, None, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(dense: nn.Module, split: data.Split, measured: dict[str, report.Measurement]) -> None:
    result = report.measure({"gpu": copy.deepcopy(dense).cuda()}, split, runs=3, threads=1)["gpu"]
    assert result.macs == measured["dense"].macs
    assert result.peak_memory_bytes is not None
    assert torch.cuda.get_device_name() in result.machine
    with pytest.raises(CdlibError, match="machines"):
        report.compare(measured["dense"], result)
