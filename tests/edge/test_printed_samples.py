"""The PDF of printed samples holds the right pictures, as often as asked, and the same bytes for the same seed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cdlib import CdlibError, data, plots
from cdlib.cli.app import app
from cdlib.data import Dataset
from cdlib.edge import print_samples

CLASSES = tuple(f"class ${number}" for number in range(10))


@pytest.fixture(scope="module")
def noise() -> Dataset:
    """60 test pictures of noise, which have more colours than a palette holds and are therefore stored as they are."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (120, 3, 24, 24), np.uint8)
    labels = np.arange(120) % 10
    return data.from_arrays("noise", CLASSES, (images[:60], labels[:60]), (images[60:], labels[60:]), False)


def stored(pdf: bytes) -> list[np.ndarray]:
    """The pictures of a PDF in RGB, which are compressed as in PNG files."""
    found = []
    for match in re.finditer(rb"/ColorSpace /DeviceRGB.*?stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        head = pdf[pdf.rfind(b"obj", 0, match.start()) : match.start()] + match[0][:400]
        width, height = (int(re.search(rb"/%b (\d+)" % side, head)[1]) for side in (b"Width", b"Height"))  # type: ignore[index]
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", match[1]),
            (b"IEND", b""),
        )
        chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
        found.append(np.asarray(Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))))
    return found


def sizes(pdf: bytes) -> list[tuple[float, float]]:
    """Width and height of each picture as it is drawn, in mm."""
    found = []
    for part in pdf.split(b"stream\n")[1:]:
        with contextlib.suppress(zlib.error):
            text = zlib.decompressobj().decompress(part)
            found += re.findall(rb"([\d.]+) 0 0\s([-\d.]+) [-\d.]+ [-\d.]+ cm /I\d+ Do", text)
    return [(float(width) / 72 * 25.4, float(height) / 72 * 25.4) for width, height in found]


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", pdf))


def test_two_pictures_of_each_class_are_the_right_ones(noise: Dataset, tmp_path: Path) -> None:
    key = print_samples(noise, tmp_path / "a.pdf", seed=3)
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert key["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 2)
    assert key.index.tolist() == [f"{number:02}" for number in range(1, 21)] and key["image"].is_unique
    assert [CLASSES[noise.test.labels[place]] for place in key["image"]] == key["label"].tolist()
    assert key["label"].tolist() != sorted(key["label"]), "the order tells the classes"
    assert pages(pdf) == 4  # twelve pictures of 50 mm on a page, the score sheet, the answers
    size = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)[0]
    assert [float(side) / 72 * 25.4 for side in size] == pytest.approx([210, 297])
    assert sizes(pdf) == [pytest.approx((50, -50))] * 20  # drawn from the top down
    printed = [pixels[::-1] for pixels in stored(pdf)]
    assert len(printed) == 20
    for image, pixels in zip(key["image"], printed, strict=True):
        assert pixels.shape == (504, 504, 3)
        assert np.array_equal(pixels[10::21, 10::21], noise.test.images[image].permute(1, 2, 0))


def test_the_same_seed_gives_the_same_bytes_whatever_the_style(noise: Dataset, tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context():
        first = print_samples(noise, tmp_path / "a.pdf", seed=1)
        plots.style()
        assert print_samples(noise, tmp_path / "b.pdf", seed=1).equals(first)
    other = print_samples(noise, tmp_path / "c.pdf", seed=2)
    one, two, three = ((tmp_path / name).read_bytes() for name in ("a.pdf", "b.pdf", "c.pdf"))
    assert one == two != three and not other.equals(first)
    assert b"CreationDate" not in one and b"ModDate" not in one


def test_other_numbers_and_sizes(noise: Dataset, tmp_path: Path) -> None:
    assert len(print_samples(noise, tmp_path / "a.pdf", each=6, side=20)) == 60
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pages(pdf) == 2 + 2 + 2  # 48 pictures and 40 lines a page
    print_samples(noise, tmp_path / "b.pdf", each=1, side=180)
    assert pages((tmp_path / "b.pdf").read_bytes()) == 10 + 2
    gray = data.load("digits")
    assert len(print_samples(gray, tmp_path / "c.pdf")) == 20
    for settings, message in (
        ({"each": 7}, "fewer than 7 pictures of 'class"),
        ({"each": 0}, "each=0"),
        ({"side": 181}, "side=181: give millimetres from 10 to 180"),
        ({"side": float("nan")}, "side=nan"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(CdlibError, match=message):
            print_samples(noise, tmp_path / "d.pdf", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "d.pdf").exists()


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        file = str(tmp_path / "samples.pdf")
        return CliRunner().invoke(app, ["print-samples", "--data", "cifar10-sample", "-o", file, *arguments])

    done = run("--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["pictures"]
    assert len(rows) == 20 and {"id", "image", "label"} == set(rows[0])
    done = run()
    assert done.exit_code == 2 and "exists" in done.stderr
    assert run("--force", "--each", "1").stdout.startswith("wrote ")
