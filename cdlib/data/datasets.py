"""Data sets as tensors in memory, with train, validation and test splits fixed by a seed.

The test split depends on the seed of the split alone; the validation split is cut from the
training images, so that nothing is ever selected on the test split.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdlib.data.image_folder import Arrays
from cdlib.data.seeds import chosen
from cdlib.data.sources import read, where
from cdlib.data.splits import Dataset, Split, fingerprint
from cdlib.errors import CdlibError, check_share


def load(name: str = "digits", *, split_seed: int = 0, validation: float = 0.1) -> Dataset:
    """Load a `Dataset`, fetching it first if it has to come from the network.

    The environment variable `CDLIB_DATA` names the folder where torchvision's data sets live (default
    `~/.cache/cdlib/data`), or an image folder with `train/` and `test/`: "cifar10" is then read from there.

    Parameters
    ----------
    name : str, default "digits"
        "digits": scikit-learn's 1,797 handwritten digits, 1x8x8, needs no network; a fifth of each class is the test
        split, and a value v of 0..16 becomes the byte floor((255 v + 8) / 16).
        "cifar10-sample": 2,000 training and 1,000 test images of CIFAR-10 (Krizhevsky 2009), 3x32x32, which ship with
        the library; they are normalised like the whole set.
        "cifar10", "cifar100": 3x32x32, with their own test splits, read and if need be fetched by torchvision.
        "folder:PATH": images of one size in PATH/train/CLASS/ and PATH/test/CLASS/.
    split_seed : int, default 0
        Which images are in which split. It does not depend on the seed of a training run.
    validation : float, default 0.1
        Share of each class of the training images that becomes the validation split, rounded to a whole number of
        images, at least one and not all; 0 for none. A larger share contains a smaller one.

    Raises
    ------
    CdlibError
        For an unknown name, a folder or file that is missing or damaged, or a download that fails.
    """
    source = read(name, split_seed, download=True)
    return from_arrays(name, *source, split_seed=split_seed, validation=validation)


def from_arrays(
    name: str,
    classes: tuple[str, ...],
    train: Arrays,
    test: Arrays,
    flips: bool,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    *,
    split_seed: int = 0,
    validation: float = 0.1,
) -> Dataset:
    """Make a `Dataset` of arrays: cut off the validation split, compute the training split's statistics.

    A CdlibError if arrays have the wrong type or shape, or labels have no class.

    Parameters
    ----------
    name : str
        What to call it.
    classes : tuple of str
        Names of the classes 0, 1, ...
    train, test : (images, labels)
        uint8 [N, C, H, W] and int64 [N], NumPy arrays.
    flips : bool
        Whether a mirrored image is as good an image.
    statistics : (mean, std), optional
        By channel, in units of 0..1; by default those of the training split.
    split_seed, validation
        As for `load`.
    """
    check_share("validation", validation)
    train, test = Arrays(*train), Arrays(*test)
    for part, arrays in (("train", train), ("test", test)):
        _check_arrays(f"{name}/{part}", arrays, len(classes), train.images.shape[1:])
    held = chosen(train.labels, validation, split_seed, "validation")
    kept, cut_off = (Arrays(train.images[rows], train.labels[rows]) for rows in (~held, held))
    mean, std = statistics or _statistics(kept.images)
    parts = {"train": kept, "validation": cut_off, "test": test}
    splits = {part: _split(f"{name}/{part}", arrays, mean, std, flips) for part, arrays in parts.items()}
    return Dataset(name=name, classes=tuple(classes), **splits)


def fetch(name: str) -> Path:
    """Make a data set ready for use without the network (download it, decode it) and return `where(name)`."""
    read(name, 0, download=True)
    return where(name)


def check(name: str) -> dict[str, Any]:
    """Read a whole data set without touching the network and say what it holds; a CdlibError if it cannot be read.

    That is name, where, classes (their number), train, validation, test (images in each with `load`'s defaults),
    shape and fingerprint.
    """
    dataset = from_arrays(name, *read(name, 0, download=False))
    sizes = {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")}
    facts = {"shape": list(dataset.shape), "fingerprint": dataset.fingerprint}
    return {"name": name, "where": str(where(name)), "classes": len(dataset.classes), **sizes, **facts}


def _check_arrays(name: str, arrays: Arrays, classes: int, shape: tuple[int, ...]) -> None:
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise CdlibError(
            f"images of {name} must be uint8 [N, C, H, W] like train's, not {images.dtype} {images.shape}."
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise CdlibError(f"labels of {name} must be int64 [{len(images)}], not {labels.dtype} {list(labels.shape)}.")
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise CdlibError(f"labels of {name} must be from 0 to {classes - 1}, and there must be some.")


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel in 0..1, from exact integer sums; the latter at least 1/255."""
    total = np.zeros(images.shape[1], np.int64)
    square = np.zeros_like(total)
    for chunk in np.array_split(images, max(1, images.size // 2**24)):
        wide = chunk.astype(np.int64)
        total += wide.sum((0, 2, 3))
        square += (wide * wide).sum((0, 2, 3))
    n = images.size // images.shape[1]
    sums = [(int(t), int(s)) for t, s in zip(total, square, strict=True)]  # Python's integers do not overflow
    std = [max(1.0, math.sqrt(n * s - t * t) / n) / 255 for t, s in sums]
    return tuple(t / n / 255 for t, _ in sums), tuple(std)


def _split(name: str, arrays: Arrays, mean: tuple[float, ...], std: tuple[float, ...], flips: bool) -> Split:
    images, labels = (np.ascontiguousarray(a) for a in arrays)
    mark = fingerprint(images, labels)
    return Split(name, torch.from_numpy(images), torch.from_numpy(labels), mean, std, flips, mark)
