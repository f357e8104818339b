"""`cdlib camera`: what is written is what the network says of the same frames, and what goes wrong is one line."""

from __future__ import annotations

import csv
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cdlib
from cdlib import CdlibError, data, models
from cdlib.cli.app import app
from cdlib.edge import Deployed, export, watch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
SAMPLE = data.load("cifar10-sample")
COUNT = 12


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = models.trained("plain-16")
    path = tmp_path_factory.mktemp("camera") / "net.onnx"
    export(net, SAMPLE.test.input(4), path, card=getattr(net, models.CARD))
    return path


def picture(place: int) -> np.ndarray:
    return SAMPLE.test.images[place].permute(1, 2, 0).numpy()


def filmed(path: Path, code: str = "MJPG") -> Path:
    """A video of some pictures, wider than high, 96 x 64."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10, (96, 64))
    for place in range(COUNT):
        frame = np.full((64, 96, 3), 200, np.uint8)
        frame[:, 16:80] = picture(place).repeat(2, 0).repeat(2, 1)[..., ::-1]
        writer.write(frame)
    writer.release()
    return path


def run(file: Path, source: object, *arguments: object) -> Any:
    return CliRunner().invoke(app, ["camera", str(file), "--source", str(source), *map(str, arguments)])


def table(folder: Path) -> list[dict[str, str]]:
    text = (folder / "shots.csv").read_text()
    assert text.endswith("\n")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(("name", "code"), [("film.avi", "MJPG"), ("film.mp4", "mp4v")])
def test_frames_of_a_video_get_the_labels_of_the_network(name: str, code: str, file: Path, tmp_path: Path) -> None:
    film, out = filmed(tmp_path / name, code), tmp_path / "out"
    done = run(file, film, "--headless", "-o", out)
    assert done.exit_code == 0 and f"{COUNT} frames" in done.stdout, done.output
    net, capture, rows = Deployed(file), cv2.VideoCapture(str(film)), table(out)
    assert [row["frame"] for row in rows] == [f"{number:06}" for number in range(COUNT)]
    for row in rows:
        found = net.classify(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
        assert row["label"] == next(iter(found)) and float(row["confidence"]) == pytest.approx(
            max(found.values()), abs=1e-6
        )
        assert 0 < float(row["milliseconds"]) < 10_000
        assert Image.open(out / f"{row['frame']}.jpg").size == (288, 192)  # three times, to hold the text
    assert len({row["label"] for row in rows}) > 4
    few = run(file, film, "--headless", "-o", tmp_path / "few", "--frames", 3, "--json")
    assert few.exit_code == 0 and '"frames": 3' in few.stdout and len(table(tmp_path / "few")) == 3


def test_the_square_that_the_network_sees_is_drawn(file: Path, tmp_path: Path) -> None:
    shot = next(iter(watch(Deployed(file), filmed(tmp_path / "film.avi"))))
    pixels = np.asarray(shot.picture)
    yellow = (pixels == (255, 255, 0)).all(2)
    assert set(np.flatnonzero(yellow.mean(0) > 0.8)) == {48, 49, 238, 239}  # the middle 192 of 288
    assert set(np.flatnonzero(yellow[:, 48:240].mean(1) > 0.8)) == {0, 1, 190, 191}
    assert (pixels[4:60, 54:150] == 255).all(2).sum() > 20  # white letters


def test_pictures_of_any_size_mode_and_orientation(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, mode in enumerate(("RGB", "L", "P", "RGBA", "CMYK", "1")):
        Image.fromarray(picture(place)).convert(mode).save(folder / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    Image.fromarray(picture(6)).convert("L").convert("I;16").save(folder / "deep.png")
    turned, exif = Image.fromarray(picture(7)).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.PNG", exif=exif)
    Image.new("RGB", (1, 1)).save(folder / "tiny.bmp")
    Image.new("RGB", (900, 5)).save(folder / "wide.gif")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    assert run(file, folder, "--headless", "-o", tmp_path / "out").exit_code == 0
    net, rows = Deployed(file), table(tmp_path / "out")
    assert [row["frame"] for row in rows] == sorted(path.name for path in folder.iterdir() if path.name[0] not in ".n")
    assert all(row["label"] == next(iter(net.classify(folder / row["frame"]))) for row in rows)
    upright = next(row for row in rows if row["frame"] == "turned.PNG")
    assert upright["label"] == next(iter(net.classify(picture(7))))
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {f"{row['frame']}.jpg" for row in rows}


def test_an_interruption_leaves_whole_lines_and_frames(file: Path, tmp_path: Path) -> None:
    shots = watch(Deployed(file), filmed(tmp_path / "film.avi"), tmp_path / "out")
    three = [next(shots) for _ in range(3)]
    shots.close()
    assert [row["label"] for row in table(tmp_path / "out")] == [shot.label for shot in three]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_pictures_are_not_kept_however_long_a_camera_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    def counted(*given: Any) -> Iterator[Any]:
        made: list[weakref.ref[Any]] = []
        for shot in watch(*given):
            made.append(weakref.ref(shot))
            alive.append(sum(one() is not None for one in made))
            yield shot

    monkeypatch.setattr(cdlib.edge, "watch", counted)
    result = run(file, filmed(tmp_path / "film.avi"), "--headless", "-o", tmp_path / "out")
    assert result.exit_code == 0 and len(alive) == COUNT and max(alive) <= 2


def test_a_video_that_breaks_off_is_an_error_and_one_that_ends_is_not(file: Path, tmp_path: Path) -> None:
    whole = filmed(tmp_path / "film.avi").read_bytes()
    cut, empty, text = (tmp_path / name for name in ("cut.avi", "empty.mp4", "text.mp4"))
    cut.write_bytes(whole[: len(whole) // 2])
    empty.write_bytes(b"")
    text.write_text("no video")
    done = run(file, cut, "--headless", "-o", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert 0 < len(rows) < COUNT
    assert done.exit_code == 2 and done.stderr == f"error: {cut} broke off after {len(rows)} frames of {COUNT}.\n"
    for film in (empty, text):
        done = run(file, film, "--headless", "-o", tmp_path / "none")
        assert done.exit_code == 2 and done.stderr == f"error: {film} is no video, or damaged.\n"
    assert not (tmp_path / "none").exists()


def test_bad_input_ends_with_one_line_and_code_2(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film, bare, spoilt = filmed(tmp_path / "film.avi"), tmp_path / "bare", tmp_path / "spoilt"
    bare.mkdir()
    spoilt.mkdir()
    (spoilt / "text.jpg").write_text("no picture")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    out = ("--headless", "-o", tmp_path / "out")
    cases: dict[tuple[object, ...], str] = {
        (9, *out): "camera 9 cannot be opened: there is none, another program uses it",
        ("99999999999999999999", *out): "camera 99999999999999999999 cannot be opened",
        (tmp_path / "none.mp4", *out): "there is no",
        (bare, *out): "has no pictures",
        (spoilt, *out): "text.jpg is no picture",
        (film, "--headless"): "give a folder to write to",
        (film, "--headless", "-o", bare): "bare cannot be written: File exists",
        (film, "--headless", "-o", tmp_path / "no" / "out"): "No such file or directory",
        (film, *out, "--frames", 0): "--frames=0",
    }
    if sys.platform == "linux":
        cases[film,] = "no screen for a window"
    for arguments, message in cases.items():
        done = run(file, *arguments)
        assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output
        assert not (tmp_path / "out").exists()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "out")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refused)  # tests may run as root, whom no folder refuses
        assert "cannot be written: Permission denied" in run(file, film, *out).stderr
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-python-headless" in run(file, film, *out).stderr
    Image.fromarray(picture(0)).save(bare / "one.png")
    assert run(file, bare, *out).exit_code == 0  # pictures need no OpenCV
    with pytest.raises(CdlibError, match="there is no nothing"):
        next(watch(Deployed(file), "nothing"))


def test_a_full_disk_leaves_no_half_picture_and_no_line_of_it(file: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "in" / "one.png")
    shots = watch(Deployed(file), tmp_path / "in", tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk, the last write is a part of it
    try:
        with pytest.raises(CdlibError, match="out cannot be written: File too large"):
            next(shots)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["shots.csv"] and table(tmp_path / "out") == []
