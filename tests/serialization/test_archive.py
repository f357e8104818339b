"""The format of files: tensors in one stream; and the cards that travel with networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import cdlib
from cdlib import CdlibError, models
from cdlib.serialization import archive, example_input

HEAD: dict[str, Any] = {
    **{"class": "Own", "shared": {}, "training": False},
    **{key: [] for key in ("removed", "temporary", "channels_last", "unlike")},
}


def streamed(path: Path) -> dict[str, Tensor]:
    """Write tensors of all kinds into one stream; return them."""
    tensors = {
        "a.weight": torch.randn(3, 2, dtype=torch.float64),
        "a.bits": torch.arange(7, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        "number": torch.tensor(-5),
        "half": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False]),
    }
    archive.write(path, HEAD, tensors, stream=True)
    return tensors


def test_tensors_of_all_kinds_come_back_from_a_stream(tmp_path: Path) -> None:
    tensors = streamed(path := tmp_path / "s.cdlib")
    description, found = archive.read(path)
    assert list(found) == list(tensors) and description["class"] == "Own"
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert archive.read(path, tensors=False)[0]["tensors"][1] == ["a.bits", "uint8", [7]]


def test_any_altered_byte_of_a_stream_is_noticed(tmp_path: Path) -> None:
    tensors = streamed(path := tmp_path / "s.cdlib")
    content, passed = path.read_bytes(), 0
    for at in range(len(content)):
        if content[at : at + 1] == b" ":
            continue
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = archive.read(path)[1]
        except CdlibError as error:
            assert "\n" not in str(error) and any(w in str(error) for w in ("damaged", "cut short", "did not write"))
        else:  # the last digits of base85 may stand for more bytes than there are
            passed += 1
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert passed <= 1


@pytest.mark.parametrize("row", [["a", "uint9", [7]], ["a", "uint8", [8]], ["a", "Tensor", [7]], ["a", "uint8"], 3])
def test_tables_that_do_not_fit_their_stream_are_one_line(row: Any, tmp_path: Path) -> None:
    streamed(path := tmp_path / "s.cdlib")
    description = archive.read(path)[0]
    with safe_open(path, "pt") as opened:
        stream = opened.get_tensor(archive.STREAM)
    description["tensors"][1] = row
    path.write_bytes(save({archive.STREAM: stream}, {"cdlib": json.dumps(description)}))
    with pytest.raises(CdlibError, match="no such tensors"):
        archive.read(path)


def test_the_table_of_a_stream_takes_a_quarter_of_that_of_safetensors_at_most(tmp_path: Path) -> None:
    cdlib.save(cdlib.quantization.share(models.build("vgg_mini"), 2), path := tmp_path / "s.cdlib")
    description, tensors = archive.read(path)
    content = sum(tensor.nbytes for tensor in tensors.values())
    head = path.stat().st_size - content
    assert 0 < head < 0.25 * (len(archive.content_of(description, tensors)) - content)


# --------------------------------------------------------------------------------------------------------------- cards


def test_the_card_of_a_shipped_network_stays_with_all_that_is_made_of_it(tmp_path: Path) -> None:
    model = models.trained("plain-16")
    card: models.Card = getattr(model, models.CARD)
    kept = dataclasses.replace(card, accuracy=None, record="")
    x = torch.rand(4, 3, 32, 32)
    groups = cdlib.find_groups(model, x[:1])
    cut = cdlib.remove(model, groups, {groups.prunable[0].name: [0, 1]})
    for made in (model, cut, cdlib.quantization.static(cut, x), cdlib.quantization.share(cut)):
        cdlib.save(made, path := tmp_path / "x.cdlib")
        assert getattr(cdlib.load(path), models.CARD) == kept
    cdlib.save(model, path)
    found = example_input(path)
    assert isinstance(found, Tensor) and found.shape == (1, 3, 32, 32)


def test_a_damaged_card_is_one_line(tmp_path: Path) -> None:
    cdlib.save(models.trained("plain-16"), path := tmp_path / "x.cdlib")
    description, tensors = archive.read(path)
    description["card"]["std"] = [0, 1, 1]
    archive.write(path, description, tensors)
    with pytest.raises(CdlibError, match=r"x\.cdlib is damaged: .* does not fit together"):
        cdlib.load(path)


def test_training_on_other_images_takes_the_card_away() -> None:
    model, sample = models.trained("plain-16"), cdlib.data.load("cifar10-sample")
    few = dataclasses.replace(sample, train=sample.train.sample(64), validation=sample.validation.sample(8))
    cdlib.train.fit(model, few, cdlib.train.Recipe(epochs=1, batch_size=64), progress=False)
    assert hasattr(model, models.CARD)
    other = dataclasses.replace(few, train=dataclasses.replace(few.train, mean=(0.1, 0.2, 0.3)))
    cdlib.train.fit(model, other, cdlib.train.Recipe(epochs=1, batch_size=64), progress=False)
    assert not hasattr(model, models.CARD)
