"""Data sets: exact contents, splits that stay as they are, batches against a slow reference, damaged files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from cdlib import data
from cdlib.data import image_folder as images
from cdlib.data.image_folder import Arrays
from cdlib.errors import CdlibError

IMAGES = os.environ.get("CDLIB_DATA")
"""The images of CIFAR-10, where they are at hand."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CDLIB_DATA", raising=False)


def noise(n: int, *, classes: int = 3, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return Arrays(random.integers(0, 256, (n, *shape), np.uint8), np.arange(n, dtype=np.int64) % classes)


def noise_dataset(n: int, *, shape: tuple[int, int, int] = (3, 8, 8), flips: bool = True) -> data.Dataset:
    return data.from_arrays("noise", ("a", "b", "c"), noise(n, shape=shape), noise(9, shape=shape, seed=1), flips)


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 3, mode: str = "RGB") -> Path:
    """Write n 6x5 PNG images a class; pixel values tell part, class and number."""
    for p, part in enumerate(("train", "test")):
        for c, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                picture = Image.new(mode, (6, 5), 100 * p + 10 * c + i if mode == "L" else (100 * p, 10 * c, i))
                picture.save(root / part / name / f"{i}.png")
    return root


# --- digits and splits


def test_digits_are_all_there_with_the_stated_bytes() -> None:
    dataset = data.load("digits")
    raw = load_digits()
    expected = sorted(
        (bytes(np.floor((255 * v + 8) / 16).astype(np.uint8)), int(y))
        for v, y in zip(raw.images, raw.target, strict=True)
    )
    found = [
        (x.numpy().tobytes(), int(y))
        for split in (dataset.train, dataset.validation, dataset.test)
        for x, y in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(found) == expected
    assert dataset.shape == (1, 8, 8)
    assert dataset.classes == tuple("0123456789")
    assert [(v * 255 + 8) // 16 for v in (0, 5, 8, 16)] == [0, 80, 128, 255]
    assert set(dataset.train.images.unique().tolist()) == {(v * 255 + 8) // 16 for v in range(17)}


def test_splits_are_stratified() -> None:
    dataset = data.load("digits")
    count = {part: torch.bincount(getattr(dataset, part).labels) for part in ("train", "validation", "test")}
    of_class = sum(count.values())
    assert (count["test"] - 0.2 * of_class).abs().max() <= 0.5
    assert (count["validation"] - 0.1 * (of_class - count["test"])).abs().max() <= 0.5


def test_the_default_digits_never_change() -> None:
    dataset = data.load()
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1295, 143, 359)
    assert dataset.test.fingerprint == "ff513b03be1c2474"
    assert dataset.fingerprint == "bd6f8675e13a5d2a"


def test_the_test_split_depends_on_the_split_seed_only() -> None:
    one, more, other = data.load(validation=0.1), data.load(validation=0.3), data.load(split_seed=1)
    assert one.test.fingerprint == more.test.fingerprint != other.test.fingerprint
    assert one.fingerprint != more.fingerprint
    rows = {x.numpy().tobytes() for x in more.validation.images}
    assert all(x.numpy().tobytes() in rows for x in one.validation.images)


def test_validation_can_be_left_out() -> None:
    dataset = data.load(validation=0)
    assert len(dataset.validation) == 0
    assert len(dataset.train) == 1295 + 143


def test_a_class_of_one_image_stays_in_the_training_split() -> None:
    arrays = Arrays(noise(5).images, np.array([0, 0, 0, 1, 2], np.int64))
    dataset = data.from_arrays("x", ("a", "b", "c"), arrays, noise(3), True, validation=0.9)
    assert torch.bincount(dataset.train.labels).tolist() == [1, 1, 1]


@pytest.mark.parametrize("what", ["pixel", "label"])
def test_a_fingerprint_tells_one_changed_pixel_or_label(what: str) -> None:
    train, test = noise(30), noise(9, seed=1)
    before = data.from_arrays("x", ("a", "b", "c"), train, test, True)
    changed = Arrays(test.images.copy(), test.labels.copy())
    if what == "pixel":
        changed.images[3, 0, 0, 0] ^= 1
    else:
        changed.labels[3] = (changed.labels[3] + 1) % 3
    after = data.from_arrays("x", ("a", "b", "c"), train, changed, True)
    assert before.fingerprint != after.fingerprint
    assert before.test.fingerprint != after.test.fingerprint
    assert before.train.fingerprint == after.train.fingerprint


def test_statistics_are_those_of_the_training_split() -> None:
    dataset = noise_dataset(50)
    pixels = dataset.train.images.double().numpy() / 255
    np.testing.assert_allclose(dataset.test.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.test.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_constant_images_do_not_divide_by_zero() -> None:
    arrays = Arrays(np.full((6, 1, 8, 8), 7, np.uint8), noise(6).labels)
    dataset = data.from_arrays("flat", ("a", "b", "c"), arrays, arrays, False)
    assert torch.equal(dataset.test.input(6), torch.zeros(6, 1, 8, 8)) or dataset.test.input(6).abs().max() < 1e-5


# --- batches


def test_batches_in_order_are_the_normalised_images() -> None:
    split = noise_dataset(50).train
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (split.mean, split.std))
    expected = (split.images.double() / 255 - mean) / std
    found = list(data.batches(split, 16))
    assert [len(y) for _, y in found] == [16] * (len(split) // 16) + [len(split) % 16]
    torch.testing.assert_close(torch.cat([x for x, _ in found]).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.cat([y for _, y in found]), split.labels)
    assert torch.equal(split.input(5), found[0][0][:5])
    assert found[0][0].dtype == torch.float32


def test_an_epoch_shows_every_image_once() -> None:
    split = noise_dataset(100).train
    rows = torch.cat([x for x, _ in data.batches(split, 16, seed=3)])
    shown, owned = ([x.numpy().tobytes() for x in batch] for batch in (rows, split.input(len(split))))
    assert shown != owned
    assert sorted(shown) == sorted(owned)


def test_batches_are_a_pure_function_of_seed_and_epoch() -> None:
    split = noise_dataset(60).train

    def labels_and_images(seed: int, epoch: int) -> torch.Tensor:
        return torch.cat([x for x, _ in data.batches(split, 16, augment=True, seed=seed, epoch=epoch)])

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = labels_and_images(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(labels_and_images(0, 0), first)
    assert not torch.equal(labels_and_images(0, 1), first)
    assert not torch.equal(labels_and_images(1, 0), first)
    orders = [torch.cat([y for _, y in data.batches(split, 16, seed=0, epoch=epoch)]).tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(("size", "count"), [(18, 3), (19, 2), (54, 1), (55, 0)])
def test_drop_last_leaves_out_incomplete_batches_only(size: int, count: int) -> None:
    split = noise_dataset(60).train  # 54 images
    assert [len(y) for _, y in data.batches(split, size, drop_last=True)] == [size] * count


@pytest.mark.parametrize(("side", "reach", "flips"), [(8, 1, False), (16, 2, True), (33, 4, True)])
def test_augmentation_is_pad_crop_and_flip(side: int, reach: int, flips: bool) -> None:
    """Every image equals exactly one of the crops of the padded image, and all of them occur about equally often."""
    split = noise_dataset(1000, shape=(1, side, side), flips=flips).train
    split = dataclasses.replace(split, mean=(0.0,), std=(1 / 255,))  # batches then give the bytes themselves
    order = torch.cat([x for x, _ in data.batches(dataclasses.replace(split, flips=False), 128, seed=5)]).byte()
    moved = torch.cat([x for x, _ in data.batches(split, 128, seed=5, augment=True)]).byte()
    padded = F.pad(order.float(), (reach,) * 4, mode="reflect").byte()
    counts, matches = [], torch.zeros(len(split), dtype=torch.long)
    for mirrored in (False, True) if flips else (False,):
        for top in range(2 * reach + 1):
            for left in range(2 * reach + 1):
                crop = padded[:, :, top : top + side, left : left + side]
                same = (moved == (crop.flip(-1) if mirrored else crop)).flatten(1).all(1)
                matches += same
                counts.append(int(same.sum()))
    assert torch.equal(matches, torch.ones_like(matches))
    expected = len(split) / len(counts)
    chi_square = sum((c - expected) ** 2 / expected for c in counts)
    assert chi_square < len(counts) - 1 + 5 * (2 * (len(counts) - 1)) ** 0.5


def test_alternating_flips_show_both_sides_in_any_two_epochs() -> None:
    split = noise_dataset(200, flips=True).train
    options = {"augment": True, "shift": 0, "alternate": True, "seed": 5}
    seen = []
    for epoch in range(3):
        order = torch.cat([x for x, _ in data.batches(split, 50, seed=5, epoch=epoch)])
        shown = torch.cat([x for x, _ in data.batches(split, 50, epoch=epoch, **options)])
        whole, back = ((shown == x).flatten(1).all(1) for x in (order, order.flip(-1)))
        assert torch.all(whole ^ back)
        seen.append({x.numpy().tobytes(): bool(w) for x, w in zip(order, whole, strict=True)})
    assert all(seen[0][x] != seen[1][x] and seen[0][x] == seen[2][x] for x in seen[0])
    assert 60 < sum(seen[0].values()) < 120, "half of 180 by chance"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_parts_of_all_processes_are_the_batches_of_one(world: int, drop_last: bool) -> None:
    split = noise_dataset(60).train  # 54 images: the last batch has 14
    options = {"augment": True, "seed": 1, "epoch": 2, "drop_last": drop_last}
    whole = list(data.batches(split, 20, **options))
    parts = [list(data.batches(split, 20, rank=rank, world=world, **options)) for rank in range(world)]
    assert [len(y) for _, y in whole] == [20, 20] if drop_last else [20, 20, 14]
    for i, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([p[i][0] for p in parts]), x)
        assert torch.equal(torch.cat([p[i][1] for p in parts]), y)
    assert {len(p[0][1]) for p in parts} == {20 // world}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batches() -> None:
    split = noise_dataset(200, shape=(3, 32, 32)).train
    options = {"augment": True, "seed": 1, "epoch": 2}
    here, there = (data.batches(s, 64, **options) for s in (split, split.to("cuda")))
    for (x, y), (u, v) in zip(here, there, strict=True):
        assert u.is_cuda
        torch.testing.assert_close(u.cpu(), x, rtol=0, atol=1e-6)
        assert torch.equal(v.cpu(), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: give an integer of at least 1"),
        ({"batch_size": 8, "rank": 2, "world": 2}, "rank must be from 0 to world - 1 = 1, not 2"),
        ({"batch_size": 9, "world": 2}, "batch_size 9 cannot be cut into 2 equal parts"),
        ({"batch_size": 8, "augment": True}, "give batches a seed"),
        ({"batch_size": 8, "seed": 0, "shift": 8}, "shift=8: give a number of pixels from 0 to 7, or None"),
        ({"batch_size": 8, "seed": -1}, "seed=-1: give an integer of at least 0"),
        ({"batch_size": 8, "seed": 0, "epoch": -1}, "epoch=-1: give"),
        ({"batch_size": 8, "seed": 2**64}, f"seed={2**64}: give an integer of at most {2**63 - 1}"),
    ],
)
def test_batches_refuse_at_once(options: dict, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        data.batches(noise_dataset(20).train, **options)


def test_input_asks_for_images_there_are() -> None:
    with pytest.raises(CdlibError, match="ask for 1 to 9 of them, not 10"):
        noise_dataset(20).test.input(10)


# --- image folders


def test_a_folder_is_read_in_order_and_exactly(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / ".hidden.png").write_text("not an image either")
    dataset = data.load(f"folder:{root}", validation=0)
    assert dataset.classes == ("cat", "dog")
    assert dataset.shape == (3, 5, 6)
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.train.images[:, :, 4, 5].tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 10, 0],
        [0, 10, 1],
        [0, 10, 2],
    ]
    assert dataset.test.images[:, 0].unique().tolist() == [100]
    assert dataset.train.flips


def test_grey_images_keep_one_channel_unless_some_are_coloured(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "grey", mode="L")
    dataset = data.load(f"folder:{root}", validation=0)
    assert dataset.shape == (1, 5, 6)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    Image.new("RGB", (6, 5), (9, 8, 7)).save(root / "train" / "cat" / "0.png")
    dataset = data.load(f"folder:{root}", validation=0)
    assert dataset.train.images[:, :, 0, 0].tolist() == [[9, 8, 7], *([v] * 3 for v in (1, 2, 10, 11, 12))]


def test_the_cache_saves_decoding_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "pets")
    first = data.load(f"folder:{root}")
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decode", lambda listings: pytest.fail("decoded again"))
        assert data.load(f"folder:{root}").fingerprint == first.fingerprint
    Image.new("RGB", (6, 5), (1, 1, 1)).save(root / "test" / "dog" / "0.png")
    os.utime(root / "test" / "dog" / "0.png", ns=(1, 1))
    assert data.load(f"folder:{root}").fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    first = data.load(f"folder:{root}")
    (cache,) = (tmp_path / "cache" / "folders").iterdir()
    raw = bytearray(cache.read_bytes())
    raw[len(raw) // 4] ^= 1
    cache.write_bytes({"truncate": raw[:-300], "flip": raw, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert data.load(f"folder:{root}").fingerprint == first.fingerprint
    assert data.load(f"folder:{root}").fingerprint == first.fingerprint
    assert [f.name for f in cache.parent.iterdir()] == [cache.name]


def test_an_unwritable_cache_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "pets")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CDLIB_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set CDLIB_CACHE"):
        assert len(data.load(f"folder:{root}").test) == 6


def spoil(root: Path, how: str) -> None:
    victim = root / "test" / "dog" / "1.png"
    match how:
        case "truncated":
            random = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
            Image.fromarray(random).save(victim)
            victim.write_bytes(victim.read_bytes()[:-40])
        case "not an image":
            victim.write_text("hello")
        case "odd size":
            Image.new("RGB", (7, 5)).save(victim)
        case "16 bits":
            Image.fromarray(np.zeros((5, 6), np.uint16)).save(victim)
        case "missing class":
            for file in victim.parent.iterdir():
                file.unlink()
            victim.parent.rmdir()
        case "empty class":
            for file in victim.parent.iterdir():
                file.unlink()
        case "no test":
            (root / "test").rename(root / "val")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", "test/dog/1.png is not a readable image"),
        ("not an image", "test/dog/1.png is not a readable image"),
        ("odd size", r"test/dog/1.png is 7x5 and .*train/cat/0.png is 6x5; resize"),
        ("16 bits", r"test/dog/1.png has pixels of mode 'I;16'"),
        ("missing class", r"must hold the same classes, but 'dog' is only in train/"),
        ("empty class", r"test/dog holds no images"),
        ("no test", r"is not an image folder: it needs train/ and test/"),
    ],
)
def test_a_bad_folder_is_named(how: str, message: str, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    spoil(root, how)
    with pytest.raises(CdlibError, match=message):
        data.load(f"folder:{root}")
    assert not (tmp_path / "cache").exists()


# --- CIFAR and the command line's functions


def test_cifar10_is_read_from_the_image_folder_in_cdlib_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "c10", CIFAR10, n=2)
    monkeypatch.setenv("CDLIB_DATA", str(root))
    dataset = data.load("cifar10", validation=0)
    assert dataset.classes == CIFAR10
    assert dataset.train.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert data.where("cifar10") == root
    with pytest.raises(CdlibError, match=f"read it as 'folder:{root}', or unset CDLIB_DATA"):
        data.load("cifar100")


def test_cdlib_data_with_other_classes_is_not_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_DATA", str(image_folder(tmp_path / "pets")))
    with pytest.raises(CdlibError, match="does not hold the ten classes of CIFAR-10, but cat, dog"):
        data.load("cifar10")


def test_cdlib_data_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(CdlibError, match="nowhere is not a folder"):
        data.load("cifar10")
    assert len(data.load("digits").test) == 359


def test_cifar10_in_torchvisions_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set in the original's pickles: every pixel arrives where it belongs."""
    from torchvision import datasets

    cifar = datasets.CIFAR10

    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    original = noise(20, classes=10, shape=(3, 32, 32))
    batches = {"data_batch_1": slice(0, 10), "test_batch": slice(10, 20)}
    files = {
        n: {"data": original.images[s].reshape(10, -1), "labels": original.labels[s].tolist()}
        for n, s in batches.items()
    }
    files["batches.meta"] = {"label_names": list(CIFAR10)}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in files}
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]})
    monkeypatch.setenv("CDLIB_DATA", str(tmp_path))
    dataset = data.load("cifar10", validation=0)
    assert dataset.classes == CIFAR10
    np.testing.assert_array_equal(dataset.train.images, original.images[:10])
    np.testing.assert_array_equal(dataset.test.images, original.images[10:])
    assert dataset.test.labels.tolist() == original.labels[10:].tolist()


def test_a_failed_download_says_what_to_fetch_and_where_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    target = tmp_path / "cache" / "data" / "cifar-10-python.tar.gz"
    with pytest.raises(CdlibError, match="no network") as caught:
        data.fetch("cifar10")
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz" in str(caught.value)
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    target.write_bytes(b"truncated")
    with pytest.raises(CdlibError, match="run cdlib data fetch"):
        data.check("cifar10")


def test_check_never_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.request

    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(CdlibError, match="no cifar100 in"):
        data.check("cifar100")
    facts = data.check("digits")
    assert facts["train"] + facts["validation"] + facts["test"] == 1797
    assert facts["fingerprint"] == data.load("digits").fingerprint
    assert facts["shape"] == [1, 8, 8]
    assert Path(facts["where"]).is_file()
    root = image_folder(tmp_path / "pets")
    assert data.fetch(f"folder:{root}") == root


@pytest.mark.parametrize("name", [5, None, ["digits"], Path("digits")])
def test_a_name_that_is_no_text_is_unknown(name: Any) -> None:
    with pytest.raises(CdlibError, match=f"unknown data set {re.escape(repr(str(name)))}"):
        data.load(name)


@pytest.mark.parametrize(("name", "near"), [("digit", "digits"), ("cifar-10", "cifar10"), ("folder", "folder:PATH")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(CdlibError, match=f"unknown data set '{name}'; did you mean '{near}'"):
        data.load(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "validation=1.0 is no share: give a number from 0 to below 1"),
        ({"split_seed": -1}, "split_seed=-1: give an integer of at least 0"),
        ({"split_seed": 2**64}, f"split_seed={2**64}: give an integer of at most"),
    ],
)
def test_bad_split_options(options: dict, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        data.load("digits", **options)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Arrays(noise(9).images.astype(np.float32), noise(9).labels), "must be uint8"),
        (Arrays(noise(9).images, noise(8).labels), r"must be int64 \[9\]"),
        (Arrays(noise(9).images, noise(9).labels + 1), "must be from 0 to 2"),
        (noise(9, shape=(1, 8, 8)), "like train's"),
    ],
)
def test_arrays_are_checked(train: Arrays, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        data.from_arrays("x", ("a", "b", "c"), train, noise(9), True)


def test_the_sample_of_cifar10_ships() -> None:
    dataset = data.load("cifar10-sample")
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [1800, 200, 1000]
    assert dataset.shape == (3, 32, 32)
    assert all(torch.equal(s.labels.bincount(), torch.full((10,), len(s) // 10)) for s in (dataset.train, dataset.test))
    assert dataset.train.flips
    assert data.where("cifar10-sample").stat().st_size < 1_500_000
    own = dataset.train.images.double().div(255)
    apart = own.mean((0, 2, 3)) - torch.tensor(dataset.train.mean, dtype=torch.float64)
    assert 0 < apart.abs().max() < 0.01, "normalised like the whole set, not like itself"


@pytest.mark.skipif(IMAGES is None, reason="needs the images of CIFAR-10")
def test_the_sample_is_of_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDLIB_DATA", str(IMAGES))
    sample, whole = data.load("cifar10-sample", validation=0), data.load("cifar10", validation=0)
    for part in ("train", "test"):
        few, known = (
            {(x.tobytes(), y) for x, y in zip(split.images.numpy(), split.labels.tolist(), strict=True)}
            for split in (getattr(sample, part), getattr(whole, part))
        )
        assert few <= known and len(few) == len(getattr(sample, part))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_sample_that_is_cut_short_is_one_line(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.where("cifar10-sample").read_bytes()
    file = tmp_path / "cifar10-sample.npz"
    file.write_bytes(whole[: int(share * len(whole))])
    monkeypatch.setattr("cdlib.data.sources.where", lambda name: file)
    with pytest.raises(CdlibError, match="cifar10-sample.npz is damaged") as error:
        data.load("cifar10-sample")
    assert "\n" not in str(error.value)


def test_a_sample_is_not_the_first_images() -> None:
    """Of 400 images that are sorted by class, forty are drawn: some of each class, the same ones for the same seed."""
    labels = torch.arange(4).repeat_interleave(100)
    images = torch.arange(400).view(-1, 1, 1, 1).to(torch.uint8)
    split = data.Split("sorted", images, labels, (0.5,), (0.2,), False, "whole")
    drawn = split.sample(40)
    assert drawn.labels.bincount().min() >= 3
    assert torch.equal(split.sample(40).images, drawn.images)
    assert torch.equal(split.sample(400).images[:40], drawn.images)  # more of the same
    assert torch.equal(split.sample(400).labels.bincount(), labels.bincount())  # none twice
    assert not torch.equal(split.sample(40, seed=1).images, drawn.images)
    assert drawn.fingerprint != "whole" == split.fingerprint and drawn.name == "sorted, 40 images"
    with pytest.raises(CdlibError, match="has 400 images; ask for 1 to 400 of them, not 401"):
        split.sample(401)
