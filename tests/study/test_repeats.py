"""A recorded run is made again elsewhere, and both are set beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdlib import CdlibError
from cdlib.cli.app import app
from cdlib.study import prune_over_grid, repeat, run

PLAN = {"network": "plain-16", "data": "cifar10-sample", "by": "l1", "amounts": [0.5]}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CDLIB_RESULTS", str(tmp_path / "results"))
    (tmp_path / "results").mkdir()
    run("zoo", prune_over_grid, {**PLAN, "amounts": []}, seed=1)
    return str(run("grid", prune_over_grid, PLAN, seed=1)["key"])


def test_what_comes_out_again_is_held_against_the_record(key: str, tmp_path: Path) -> None:
    file = tmp_path / "results" / "grid" / f"{key}.json"
    told = json.loads(file.read_text())
    told["metrics"]["dense"] -= 0.25  # as if it had been typed
    file.write_text(json.dumps(told))
    done = CliRunner().invoke(app, ["repeat", key[:8], "-o", str(tmp_path / "again"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found) == ["dense"] and found["dense"]["again"] == pytest.approx(found["dense"]["recorded"] + 0.25)
    new = json.loads((tmp_path / "again" / "grid" / f"{key}.json").read_text())
    assert new["metrics"]["accuracy"] == told["metrics"]["accuracy"] and new["seed"] == 1


def test_only_a_record_that_is_known_is_repeated_and_elsewhere(key: str, tmp_path: Path) -> None:
    [zoo] = [path.stem for path in (tmp_path / "results" / "zoo").iterdir()]
    for given, place, message in (
        ("nothing", "again", "'nothing' begins 0 of 2 keys"),
        ("", "again", "'' begins 0 of 2 keys"),
        (zoo, "again", "a program of its own"),
        (key, "results", "holds the records themselves"),
    ):
        with pytest.raises(CdlibError, match=message):
            repeat(given, tmp_path / place)
    assert not (tmp_path / "again").exists()
