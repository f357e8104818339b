"""What a simulated camera does to pictures by its stated numbers, and the experiment with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cdlib import CdlibError, data, models
from cdlib.cli.app import app
from cdlib.edge import STEPS, Deployed, disturbed, export, simulate
from cdlib.report import wilson
from cdlib.train import evaluate

pytest.importorskip("onnx")
SAMPLE = data.load("cifar10-sample")
NET = models.trained("plain-16")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "net.onnx"
    export(NET, SAMPLE.test.input(4), path, card=getattr(NET, models.CARD))
    return path


def flat(value: int) -> np.ndarray:
    return np.full((32, 32, 3), value, np.uint8)


def seen(image: np.ndarray, seed: int = 0, **strength: float) -> np.ndarray:
    return np.asarray(disturbed(image, strength, seed), float)


def test_without_strength_the_accuracy_is_that_of_the_plain_pictures(file: Path) -> None:
    for strength in (0.0, {}, {"blur": 0.0}):
        assert np.array_equal(
            disturbed(SAMPLE.test.images[5].permute(1, 2, 0).numpy(), strength, 0),
            SAMPLE.test.images[5].permute(1, 2, 0),
        )
    found = simulate(Deployed(file), SAMPLE.test, 0)
    assert found.accuracy == evaluate(NET, SAMPLE.test).accuracy
    assert sorted(found.shots.index) == list(range(len(SAMPLE.test)))
    assert found.interval == wilson(int(found.shots["right"].sum()), len(SAMPLE.test))


def test_stronger_is_not_better_and_seeds_reproduce(file: Path) -> None:
    net = Deployed(file)
    found = [simulate(net, SAMPLE.test, strength, shots=300, seed=1) for strength in (0, 0.5, 1)]
    assert found[0].accuracy > found[1].accuracy + 0.05 > found[2].accuracy + 0.1
    assert simulate(net, SAMPLE.test, 0.5, shots=300, seed=1).shots.equals(found[1].shots)
    other = simulate(net, SAMPLE.test, 0.5, shots=300, seed=2).shots
    assert set(other.index) != set(found[1].shots.index)
    both = other.index.intersection(found[1].shots.index)
    assert (other.loc[both, "confidence"] != found[1].shots.loc[both, "confidence"]).all()


def test_noise_and_blur_have_the_stated_size() -> None:
    grey = seen(flat(128), noise=1.0)
    assert grey.mean() == pytest.approx(128, abs=1)
    assert grey.std() == pytest.approx(25.5 / 4, rel=0.1)  # 16 pixels of the camera are averaged
    assert (seen(flat(128), noise=0.5) - 128)[grey != 128].std() == pytest.approx(25.5 / 8, rel=0.1)
    edge = flat(0)
    edge[:, 16:] = 200
    assert (seen(flat(77), blur=1.0) == 77).all()
    rise = np.diff(seen(edge, blur=1.0)[16, :, 0]) / 200
    middle = (rise * np.arange(31)).sum()
    assert rise.sum() == pytest.approx(1) and middle == pytest.approx(15, abs=0.05)
    spread = (rise * (np.arange(31) - middle) ** 2).sum()
    assert spread == pytest.approx(1 + 1 / 6, rel=0.1)  # one pixel squared, and twice 1/12 for averaging in pixels


def test_light_multiplies_within_its_bounds() -> None:
    factors = np.stack([seen(flat(100), seed, light=1.0) / 100 for seed in range(50)])
    middle = factors[:, 15:17, 15:17].mean((1, 2))
    assert 0.4 * 0.8 <= middle.min() < 0.6 and 1.6 < middle.max() <= 2.55  # 255 is the end
    colours = middle / middle.mean(1, keepdims=True)
    dark = middle.max(1) < 2
    assert colours[dark].min() > 0.7 and colours[dark].max() < 1.4 and colours[dark].std() > 0.05
    slopes = factors[dark][:, :, :, 0] / middle[dark][:, None, None, 0]
    assert 1.2 < slopes[:, 15].max() < 1.3 and (factors[:, 0, 0] != factors[:, -1, -1]).any()


def test_perspective_shows_paper_at_the_borders_only_and_the_corners_where_they_moved() -> None:
    for seed in range(8):
        black = seen(flat(0), seed, perspective=1.0)[..., 0]
        assert (black[5:-5, 5:-5] == 0).all()  # 0.15 of 32 is 4.8
        moved = 4.8 * np.random.Generator(data.bits("perspective", seed)).uniform(-1, 1, (4, 2))
        for (x, y), (across, down), (right, below) in zip(
            moved, ((0, 0), (31, 0), (31, 31), (0, 31)), ((1, 1), (-1, 1), (-1, -1), (1, -1)), strict=True
        ):
            inward = x * right, y * below
            assert (black[down, across] > 128) == (max(inward) > 0.7) or max(inward) < 1.2
            inside = round(down + max(y, 0 if below > 0 else -31) + 1.5 * below), round(across + x + 1.5 * right)
            if min(inward) > 0:
                assert black[inside] == 0


def test_resampling_leaves_a_smaller_frame_and_steps_do_not_share_random_numbers() -> None:
    image = SAMPLE.test.images[0].permute(1, 2, 0).numpy()
    assert disturbed(image, {"resampling": 1.0}, 0).size == (24, 24)
    assert disturbed(image, {"resampling": 0.5}, 0).size == (76, 76)
    alone = seen(flat(128), noise=1.0)
    with_light = np.asarray(disturbed(flat(128), {"noise": 1.0, "light": 1e-9}, 0), float)
    assert np.array_equal(alone, with_light)
    digit = data.load("digits").test.images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(disturbed(digit, 0, 0))[..., :1], digit)


def test_bad_input_is_one_line(file: Path) -> None:
    net = Deployed(file)
    for act, message in {
        lambda: disturbed(flat(0), 1.1, 0): "strength perspective=1.1: give numbers from 0 to 1",
        lambda: disturbed(flat(0), {"fog": 1}, 0): "strength fog=1",
        lambda: disturbed(flat(0), {"blur": float("nan")}, 0): "strength blur=nan",
        lambda: disturbed(flat(0)[..., 0], 1, 0): r"uint8 \[32, 32\] is no picture",
        lambda: disturbed(flat(0) / 255, 1, 0): r"float64 \[32, 32, 3\] is no picture",
        lambda: disturbed(flat(0)[..., :2], 1, 0): r"uint8 \[32, 32, 2\] is no picture",
        lambda: disturbed(flat(0), 1, 3, -1): "seed=-1",
        lambda: simulate(net, SAMPLE.test, 1, shots=1001): "shots=1001: give an integer of at most 1000",
        lambda: simulate(net, SAMPLE.test, 1, seed=-1): "seed=-1",
    }.items():
        with pytest.raises(CdlibError, match=message):
            act()


def test_twenty_shots_cannot_give_925_in_a_thousand() -> None:
    assert 0.925 not in [right / 20 for right in range(21)] and 37 / 40 == 0.925
    low, high = wilson(37, 40)
    assert (round(low, 2), round(high, 2)) == (0.80, 0.97)


def test_the_command(file: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["simulate", str(file), "--data", "cifar10-sample", "--shots", "20", *arguments])

    found = json.loads(run("--strength", "1", "--only", "blur", "--only", "noise", "--json").stdout)
    assert found["strength"] == {"blur": 1.0, "noise": 1.0} and len(found["shots"]) == 20
    assert found["camera"]["accuracy"] == np.mean([shot["right"] for shot in found["shots"]])
    expected = simulate(Deployed(file), SAMPLE.test, {"blur": 1, "noise": 1}, shots=20)
    assert [shot["confidence"] for shot in found["shots"]] == expected.shots["confidence"].tolist()
    text = run().stdout
    assert "each is 5 points" in text and all(step in text for step in STEPS)
    done = CliRunner().invoke(app, ["simulate", str(file), "--data", "digits"])
    assert done.exit_code == 2 and "other classes" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "fog"), "unknown step 'fog'"),
        (("--strength", "1.5"), "--strength=1.5"),
        (("--strength", "nan"), "--strength=nan"),
        (("--seed", "-1"), "--seed=-1"),
    ],
)
def test_the_command_checks_before_the_plain_pass(
    arguments: tuple[str, ...], message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdlib.edge.simulate", lambda *_, **__: pytest.fail("it began"))
    done = CliRunner().invoke(app, ["simulate", str(file), "--data", "cifar10-sample", *arguments])
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output
