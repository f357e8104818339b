"""An exported file with its card takes pictures of any kind, and files that do not fit are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdlib import CdlibError, data, models
from cdlib.edge import Deployed, export, watch
from cdlib.quantization import static

onnx = pytest.importorskip("onnx")
SAMPLE = data.load("cifar10-sample")
WORKHORSE = models.trained("plain-16")
CARD: models.Card = getattr(WORKHORSE, models.CARD)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployed") / "net.onnx"
    export(static(WORKHORSE, SAMPLE.train.sample(100, 0)), SAMPLE.test.input(8), path, card=CARD)
    return path


def pictures(n: int) -> list[np.ndarray]:
    return [image.permute(1, 2, 0).numpy() for image in SAMPLE.test.images[:n]]


def test_pictures_are_prepared_as_the_data_set_prepares_them(file: Path) -> None:
    net = Deployed(file)
    assert net.card == CARD
    taken = np.concatenate([net.prepared(picture) for picture in pictures(20)])
    np.testing.assert_allclose(taken, SAMPLE.test.input(20).numpy(), atol=1e-5)
    first = net.classify(pictures(1)[0])
    assert list(first) != CARD.classes and sum(first.values()) == pytest.approx(1, abs=1e-5)
    assert next(iter(first)) == CARD.classes[int(net.logits(taken[:1]).argmax())]


def test_pictures_of_other_sizes_modes_and_orientations(file: Path, tmp_path: Path) -> None:
    net, picture = Deployed(file), Image.fromarray(pictures(1)[0])
    plain = net.prepared(picture)
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert np.array_equal(net.prepared(turned), plain)
    double = picture.resize((64, 64), Image.Resampling.NEAREST)
    wide = Image.new("RGB", (104, 64), "red")
    wide.paste(double, (20, 0))  # what stands left and right of the middle is cut off
    inner = np.s_[..., 1:-1]  # antialiasing sees one pixel of the neighbour
    np.testing.assert_allclose(net.prepared(wide)[inner], net.prepared(double)[inner], atol=1e-6)
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        assert net.prepared(picture.convert("L" if mode == "I;16" else mode).convert(mode)).shape == (1, 3, 32, 32)
    assert net.prepared(np.zeros((5, 900), np.uint8)).shape == (1, 3, 32, 32)


def test_grey_of_16_bits_is_scaled_to_8(file: Path, tmp_path: Path) -> None:
    net, grey = Deployed(file), pictures(1)[0][..., 0]
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (deep, tmp_path / "deep.png", Image.fromarray(deep.astype(np.int32)), Image.fromarray(deep)):
        assert np.array_equal(net.prepared(image), net.prepared(grey))
    assert len(np.unique(grey)) > 50
    shot = next(iter(watch(net, tmp_path)))
    assert (shot.frame, shot.label) == ("deep.png", next(iter(net.classify(grey))))


def test_what_does_not_fit_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.onnx"
    export(WORKHORSE, SAMPLE.test.input(2), bare)
    Deployed(bare, card=CARD)
    cut, text, spoilt = tmp_path / "cut.onnx", tmp_path / "text.jpg", tmp_path / "spoilt.onnx"
    cut.write_bytes(file.read_bytes()[:1000])
    text.write_text("no picture")
    proto = onnx.load(file)
    proto.metadata_props[0].value = json.dumps({"name": "x"})
    onnx.save(proto, spoilt)
    undefined: dict[str, Path] = {}
    for name, std in {"nan": [math.nan, 1.0, 1.0], "below": [-1.0, 1.0, 1.0]}.items():
        proto.metadata_props[0].value = replace(CARD, std=std).text()
        onnx.save(proto, undefined.setdefault(name, tmp_path / f"{name}.onnx"))
    for act, message in {
        lambda: Deployed(tmp_path / "none.onnx"): "there is no file",
        lambda: Deployed(cut): "not a network that onnxruntime can run",
        lambda: Deployed(bare): "has no card",
        lambda: Deployed(spoilt): "card of a network is damaged",
        lambda: Deployed(undefined["nan"]): "does not fit together.*nan",
        lambda: Deployed(undefined["below"]): "does not fit together.*-1.0",
        lambda: Deployed(file).prepared(np.full((9, 9), 0.5)): "this is no picture: an array of float64, give uint8",
        lambda: Deployed(file).prepared(np.full((9, 9), 7)): "this is no picture: an array of int64, give uint8",
        lambda: Deployed(file).prepared(Image.new("F", (9, 9))): "floats or of 32 bits",
        lambda: Deployed(file).prepared(Image.new("I", (9, 9), 65536)): "floats or of 32 bits",
        lambda: Deployed(file, card=replace(CARD, shape=[3, 64, 64])): "its card says",
        lambda: Deployed(file, card=replace(CARD, classes=["one"])): "its card says",
        lambda: Deployed(file, card=replace(CARD, layout="NHWC")): "must take one float tensor NCHW",
        lambda: Deployed(file).prepared(text): "text.jpg is no picture",
        lambda: Deployed(file).prepared(np.zeros((2, 3, 4, 5))): "this is no picture",
        lambda: export(WORKHORSE, SAMPLE.test.input(2), cut, card=replace(CARD, classes=["one"])): "the card says",
    }.items():
        with pytest.raises(CdlibError, match=message) as error:
            act()
        assert "\n" not in str(error.value)


def test_a_float_file_says_what_the_network_says(tmp_path: Path) -> None:
    export(WORKHORSE, SAMPLE.test.input(8), tmp_path / "net.onnx", card=CARD)
    net, x = Deployed(tmp_path / "net.onnx"), SAMPLE.test.input(50)
    with torch.no_grad():
        np.testing.assert_allclose(net.logits(x.numpy()), WORKHORSE(x).numpy(), atol=1e-3)
