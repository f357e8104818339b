"""Records: named by what was run, whole or absent, never overwritten, and read back as a table."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cdlib.errors import CdlibError
from cdlib.study import store


def a_record(
    parameters: dict[str, Any] | None = None, *, experiment: str = "trial", seed: int = 0, **metrics: Any
) -> dict:
    parameters = {"lr": 0.1} if parameters is None else parameters
    return {
        "key": store.key(experiment, parameters, seed),
        "experiment": experiment,
        "parameters": parameters,
        "seed": seed,
        "metrics": metrics or {"accuracy": 0.5},
        "wall_s": 1.5,
        "provenance": {
            "date": "2026-01-02T03:04:05Z",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "dirty": False,
            "command": "python -m trial",
            "versions": {"python": "3.11.7"},
            "machine": {"cpu": "A CPU", "cores": 2, "gpu": None, "threads": 1},
            "data": None,
            "resumed": [],
        },
    }


def test_a_key_never_changes_between_versions() -> None:
    canonical = rb'{"experiment":"trial","parameters":{"lr":0.1,"note":"\u00e9","widths":[8,16]},"seed":3}'
    expected = hashlib.sha256(canonical).hexdigest()[:16]
    assert store.key("trial", {"widths": [8, 16], "note": "é", "lr": 0.1}, 3) == expected


def test_a_key_does_not_depend_on_how_the_same_parameters_are_written() -> None:
    key = store.key("trial", {"a": 1, "b": {"c": (1, 2), "d": 0.5}}, 0)
    assert key == store.key("trial", {"b": {"d": 0.5, "c": [1.0, 2]}, "a": 1.0}, 0)


@pytest.mark.parametrize(
    ("experiment", "parameters", "seed"),
    [
        ("other", {"a": 1}, 0),
        ("trial", {"a": True}, 0),
        ("trial", {"a": "1"}, 0),
        ("trial", {"a": 1}, 1),
        ("trial", {}, 0),
    ],
)
def test_a_key_tells_different_runs_apart(experiment: str, parameters: dict[str, Any], seed: int) -> None:
    assert store.key(experiment, parameters, seed) != store.key("trial", {"a": 1}, 0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": {"b": float("nan")}}, r"parameters\.a\.b is nan, which JSON cannot hold"),
        ({"a": [1, float("inf")]}, r"parameters\.a\[1\] is inf"),
        ({"a": np.float32(1)}, r"parameters\.a is a float32, not a JSON value; use \.item\(\)"),
        ({"a": {1, 2}}, r"parameters\.a is a set, not a JSON value"),
        ({"a": {1: 2}}, r"parameters\.a has the key 1, a int"),
        ({"a": Path("x")}, r"parameters\.a is a PosixPath"),
        ({"a": "folder:/home/me/images"}, r"parameters\.a is 'folder:/home/me/images', a path of this machine"),
        ({"a": "see ~/images"}, "a path of this machine"),
        ({"a": r"C:\images"}, "a path of this machine"),
        ([1], "parameters is a list; give a dict"),
    ],
)
def test_what_json_or_another_machine_cannot_hold_is_refused(parameters: Any, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        store.key("trial", parameters, 0)


@pytest.mark.parametrize("text", ["https://example.org/a", "relative/path", "and/or", "1 / 2", "a: b", "N/A"])
def test_what_only_looks_like_a_path_is_kept(text: str) -> None:
    assert store.key("trial", {"a": text}, 0)


@pytest.mark.parametrize("experiment", ["", "../x", "a/b", ".hidden", "a b", None])
def test_an_experiment_that_is_no_folder_name_is_refused(experiment: Any) -> None:
    with pytest.raises(CdlibError, match="names a folder"):
        store.key(experiment, {}, 0)


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, 2**63])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(CdlibError, match="seed="):
        store.key("trial", {}, seed)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = a_record({"widths": [1, 2], "é": None}, accuracy=0.25, nested={"a": True})
    path = store.write(record, tmp_path)
    assert path == tmp_path / "trial" / f"{record['key']}.json"
    assert store.read(path) == record
    assert store.find("trial", {"é": None, "widths": (1, 2)}, 0, tmp_path) == record
    assert store.find("trial", {"widths": [1, 3]}, 0, tmp_path) is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8").startswith('{\n  "key": ')
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    path = store.write(a_record(accuracy=0.5), tmp_path)
    with pytest.raises(FileExistsError):
        store.write(a_record(accuracy=0.6), tmp_path)
    assert store.read(path)["metrics"] == {"accuracy": 0.5}
    assert len(list(path.parent.iterdir())) == 1


def test_without_hard_links_a_record_is_still_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    path = store.write(a_record(accuracy=0.5), tmp_path)
    with pytest.raises(FileExistsError):
        store.write(a_record(accuracy=0.6), tmp_path)
    assert store.read(path)["metrics"] == {"accuracy": 0.5}
    assert len(list(path.parent.iterdir())) == 1


def _race(barrier: Any, results: Path, number: int) -> None:
    record = a_record(winner=number, padding="x" * 200_000)
    barrier.wait(timeout=30)
    try:
        store.write(record, results)
    except FileExistsError:
        os._exit(3)
    os._exit(0)


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_of_processes_that_race_for_one_record_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        results, barrier = tmp_path / str(attempt), context.Barrier(4)
        writers = [context.Process(target=_race, args=(barrier, results, number)) for number in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(timeout=30)
        codes = [writer.exitcode for writer in writers]
        assert sorted(codes) == [0, 3, 3, 3]
        (path,) = (results / "trial").iterdir()
        assert store.read(path)["metrics"]["winner"] == codes.index(0)


def test_an_unfit_record_is_not_written(tmp_path: Path) -> None:
    for broken, message in (
        ({**a_record(), "key": "0" * 16}, "its key"),
        ({k: v for k, v in a_record().items() if k != "wall_s"}, "lacks wall_s"),
        (a_record(accuracy=float("nan")), r"record\.metrics\.accuracy is nan"),
        (a_record(file="/home/me/model.pt"), r"record\.metrics\.file is '/home/me/model\.pt', a path"),
    ):
        with pytest.raises(CdlibError, match=message):
            store.write(broken, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(CdlibError, match="cannot write to .*results.*CDLIB_RESULTS"):
        store.write(a_record(), tmp_path / "results")


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    path = store.write(a_record(), tmp_path)
    whole = path.read_text(encoding="utf-8")
    for text, message in (
        (whole[:100], "is not a record"),
        ("", "is not a record"),
        ("[1, 2]", "lacks key, experiment"),
        (whole.replace('"accuracy": 0.5', '"accuracy": NaN'), "NaN is not JSON"),
        (whole.replace('"lr": 0.1', '"lr": 0.2'), "its key"),
        (whole.replace('"machine": {', '"engine": {'), r"lacks provenance\.machine"),
        (whole.replace('"seed": 0', '"seed": "0"'), "seed='0'"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(CdlibError, match=message) as caught:
            store.load(tmp_path)
        assert str(path) in str(caught.value)
        assert "delete it" in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CdlibError, match="is not a record"):
        store.load(tmp_path)


def test_a_file_in_the_wrong_place_is_named(tmp_path: Path) -> None:
    path = store.write(a_record(), tmp_path)
    stray = tmp_path / "notes.json"
    stray.write_bytes(path.read_bytes())
    with pytest.raises(CdlibError, match=r"notes\.json is not a record: it belongs at trial/"):
        store.load(tmp_path)


def test_no_records_are_an_empty_table(tmp_path: Path) -> None:
    frame = store.load(tmp_path / "none")
    assert frame.empty
    assert list(frame.columns) == ["experiment", "seed", "wall_s", "machine", "commit", "date"]
    assert frame.index.name == "key"


def test_records_become_one_table(tmp_path: Path) -> None:
    one = a_record({"lr": 0.1, "recipe": {"epochs": 2}}, seed=1, accuracy=0.5)
    two = a_record({"lr": 0.1, "recipe": {"epochs": 2}}, seed=0, accuracy=0.75)
    other = a_record({"width": 8}, experiment="another", loss=0.1)
    other["provenance"].update(dirty=True, machine={"cpu": "A CPU", "cores": 2, "gpu": "A GPU", "threads": 1})
    for record in (one, two, other):
        store.write(record, tmp_path)
    frame = store.load(tmp_path)
    fixed = ["wall_s", "machine", "commit", "date"]
    assert list(frame.columns) == ["experiment", "seed", "width", "lr", "recipe.epochs", "loss", "accuracy", *fixed]
    assert list(frame.index) == [other["key"], two["key"], one["key"]]
    assert list(frame["accuracy"].dropna()) == [0.75, 0.5]
    assert frame.loc[other["key"], ["machine", "commit"]].tolist() == ["A GPU, A CPU", "0123456789ab-dirty"]
    assert frame.loc[one["key"], ["machine", "commit", "wall_s"]].tolist() == ["A CPU", "0123456789ab", 1.5]
    assert list(store.load(tmp_path, "another").index) == [other["key"]]


def test_a_name_that_means_two_things_gets_its_origin_in_front(tmp_path: Path) -> None:
    store.write(a_record({"size": 8, "lr": 0.1}, size=100, date="today"), tmp_path)
    store.write(a_record({"size": 9}, accuracy=0.5), tmp_path)
    frame = store.load(tmp_path)
    assert {"parameters.size", "metrics.size", "lr", "accuracy", "metrics.date", "date"} <= set(frame.columns)
    assert "size" not in frame.columns
    assert sorted(frame["parameters.size"]) == [8, 9]
    assert pd.isna(frame.loc[frame["parameters.size"] == 9, "metrics.size"]).all()


def test_the_folder_is_the_checkouts_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "checkout" / "notebooks" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.delenv("CDLIB_RESULTS", raising=False)
    monkeypatch.chdir(inside)
    with pytest.raises(CdlibError, match="run inside the checkout or set CDLIB_RESULTS"):
        store.folder()
    (tmp_path / "checkout" / "_config.yml").touch()
    assert store.folder() == tmp_path / "checkout" / "results"
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path / "elsewhere"))
    assert store.folder() == tmp_path / "elsewhere"
