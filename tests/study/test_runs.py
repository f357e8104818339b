"""A run is done once: recorded whole, skipped when recorded, resumed when killed, with its provenance."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdlib.errors import CdlibError
from cdlib.study import provenance, store
from cdlib.study.runs import run

STEPS = 6
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def files(results: Path) -> list[str]:
    """The files in and beside the folder of the records."""
    return sorted(str(p.relative_to(results.parent)) for p in results.parent.rglob("*") if p.is_file())


def walk(parameters: dict[str, Any], seed: int, workdir: Path, *, die_at: int | None = None) -> dict[str, Any]:
    """A random walk that keeps a checkpoint after every step, as training does; killed at a step if told."""
    checkpoint = workdir / "checkpoint.pt"
    start, place = 0, torch.zeros(3)
    if checkpoint.exists():
        start, place, state = torch.load(checkpoint)
        torch.set_rng_state(state)
    for step in range(start, STEPS):
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        place = place + parameters["scale"] * torch.randn(3)
        torch.save((step + 1, place, torch.get_rng_state()), checkpoint)
    return {"place": place.tolist(), "started_at": 0, "fingerprint": "0123456789abcdef"}


def in_process(target: Callable[[], Any]) -> int | None:
    """Run a function in a forked process and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(timeout=60)
    return process.exitcode


def test_a_run_is_recorded_once_and_then_skipped(results: Path) -> None:
    calls = []

    def function(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
        calls.append((dict(parameters), seed, workdir.is_dir()))
        parameters["width"] = "changed by the function"
        return {"accuracy": 0.5, "shape": (3, 32)}

    record = run("trial", function, {"width": 8, "sizes": (1, 2)}, seed=4, record_in=results)
    again = run("trial", function, {"sizes": [1, 2], "width": 8.0}, seed=4, record_in=results)
    assert calls == [({"width": 8, "sizes": [1, 2]}, 4, True)]
    assert record == again
    assert record["parameters"] == {"width": 8, "sizes": [1, 2]}
    assert record["metrics"] == {"accuracy": 0.5, "shape": [3, 32]}
    assert record["wall_s"] >= 0
    assert files(results) == [f"results/trial/{record['key']}.json"]
    assert list(store.load(results).index) == [record["key"]]


def test_the_function_is_seeded_and_the_caller_left_alone(results: Path) -> None:
    def function(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
        return {"drawn": [random.random(), float(np.random.rand()), torch.rand(()).item()]}

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]

    def begin() -> None:
        random.seed(9), np.random.seed(9), torch.manual_seed(9)

    begin()
    expected = draw()
    first = {}
    for label in ("made", "skipped"):
        begin()
        first[label] = run("trial", function, {}, seed=3, record_in=results)
        assert draw() == expected, label
    assert first["made"] == first["skipped"]
    other = run("trial", function, {}, seed=3, record_in=results / "again")
    assert other["metrics"] == first["made"]["metrics"]
    assert run("trial", function, {}, seed=4, record_in=results)["metrics"] != other["metrics"]


@posix
def test_a_killed_run_leaves_nothing_and_resumes_to_the_same_result(results: Path) -> None:
    undisturbed = run("walk", walk, {"scale": 2.0}, seed=1, record_in=results / "undisturbed")

    def killed(step: int) -> None:
        run("walk", lambda *given: walk(*given, die_at=step), {"scale": 2.0}, seed=1, record_in=results)

    for step in (2, 4):
        assert in_process(lambda step=step: killed(step)) == -signal.SIGKILL
        assert store.load(results).empty
    record = run("walk", lambda *given: walk(*given, die_at=3), {"scale": 2.0}, seed=1, record_in=results)
    assert record["metrics"] == undisturbed["metrics"]
    assert [sorted(attempt) for attempt in record["provenance"]["resumed"]] == [["commit", "date", "dirty"]] * 2
    assert undisturbed["provenance"]["resumed"] == []
    assert [p for p in files(results) if "undisturbed" not in p] == [f"results/walk/{record['key']}.json"]


@posix
def test_a_kill_while_the_record_is_written_leaves_none(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed() -> None:
        monkeypatch.setattr(os, "link", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        run("walk", walk, {"scale": 1.0}, record_in=results)

    assert in_process(killed) == -signal.SIGKILL
    assert store.load(results).empty
    record = run("walk", lambda *given: walk(*given, die_at=STEPS - 1), {"scale": 1.0}, record_in=results)
    assert files(results) == [f"results/walk/{record['key']}.json"]


@posix
def test_two_processes_at_one_run_do_the_work_once(results: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, release = context.Event(), context.Event()
    log = tmp_path / "calls"

    def function(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
        with open(log, "a") as file:
            file.write("called\n")
        started.set()
        release.wait(timeout=30)
        return {"pid": os.getpid()}

    def work() -> None:
        run("trial", function, {}, record_in=results)

    first = context.Process(target=work)
    first.start()
    assert started.wait(timeout=30)
    second = context.Process(target=work)
    second.start()
    release.set()
    for process in (first, second):
        process.join(timeout=30)
        assert process.exitcode == 0
    assert log.read_text() == "called\n"
    assert store.load(results)["pid"].tolist() == [first.pid]


def test_a_run_that_fails_leaves_no_record_but_its_folder(results: Path) -> None:
    def function(parameters: dict[str, Any], seed: int, workdir: Path) -> dict[str, Any]:
        (workdir / "checkpoint").touch()
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        run("trial", function, {}, record_in=results)
    key = store.key("trial", {}, 0)
    assert store.load(results).empty
    assert f"_build/work/trial/{key}/checkpoint" in files(results)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": float("nan")}, r"experiment 'trial', seed 0: metrics\.loss is nan, which JSON cannot hold"),
        ({"loss": torch.tensor(1.0)}, r"metrics\.loss is a Tensor, not a JSON value; use \.item\(\)"),
        ({"file": "/tmp/model.pt"}, r"metrics\.file is '/tmp/model\.pt', a path of this machine"),
        (0.5, r"metrics is a float; give a dict"),
    ],
)
def test_metrics_that_cannot_be_recorded_are_named(results: Path, metrics: Any, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        run("trial", lambda *_: metrics, {}, record_in=results)
    assert store.load(results).empty


def test_nothing_is_started_that_could_not_be_recorded(results: Path) -> None:
    def function(*_: Any) -> dict[str, Any]:
        raise AssertionError("started")

    results.write_text("a file where the folder should be")
    with pytest.raises(CdlibError, match="cannot write to"):
        run("trial", function, {}, record_in=results)
    results.unlink()
    (results.parent / "_build").write_text("a file where the working folder should be")
    with pytest.raises(CdlibError, match="cannot write to"):
        run("trial", function, {}, record_in=results)
    with pytest.raises(CdlibError, match="NaN|nan"):
        run("trial", function, {"lr": float("nan")}, record_in=results)


def test_a_damaged_record_stops_the_run(results: Path) -> None:
    path = results / "trial" / f"{store.key('trial', {}, 0)}.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"key": ')
    with pytest.raises(CdlibError, match=re.escape(str(path))):
        run("trial", lambda *_: {"a": 1}, {}, record_in=results)


def test_a_record_says_where_it_comes_from_but_not_whose_machine_it_was(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "orig_argv", ["/home/someone/.venv/bin/python", "-m", "trial", f"--out={Path.home()}/x y/out"]
    )
    record = run("walk", walk, {"scale": 1.0}, record_in=results)
    origin = record["provenance"]
    assert origin["command"] == "python -m trial --out=out"
    assert origin["data"] == "0123456789abcdef"
    assert origin["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(origin["versions"]) == {"python", "cdlib", "torch", "torchvision", "numpy"}
    assert set(origin["machine"]) == {"cpu", "instructions", "cores", "gpu", "threads"}
    assert origin["machine"]["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", origin["date"])
    text = json.dumps(record)
    for private in (socket.gethostname(), f"/{getpass.getuser()}", str(Path.home()), str(results.parent), "someone"):
        assert private not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/usr/bin/python3.11", "/a/b/run.py", "--n", "3"], "python3.11 run.py --n 3"),
        (["python", "-c", "import os; print(os.getcwd())"], "python -c ..."),
        (["python", "-m", "ipykernel_launcher", "-f", "/tmp/k-1.json"], "notebook"),
        (
            ["cdlib", "folder:/home/Jane Doe/images", "https://example.org/a"],
            "cdlib folder:images https://example.org/a",
        ),
        ([r"C:\Users\me\python.exe", "~/run.py", "a/b.py"], "python.exe run.py a/b.py"),
    ],
)
def test_a_command_loses_its_folders(arguments: list[str], expected: str) -> None:
    assert provenance.command(arguments) == expected


def test_the_commit_and_whether_the_tree_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance.code() == {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "record.json").write_text("{}")
    assert provenance.code() == {"commit": commit, "dirty": False}
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert provenance.code() == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert provenance.code() == {"commit": commit, "dirty": True}
