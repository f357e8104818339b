"""Reading an image folder (`train/` and `test/`, a folder per class) into arrays, once: the decoded images are cached.

The cache is one `.npz` file per folder and state of that folder under `$CDLIB_CACHE` (default `~/.cache/cdlib`).
Splits, statistics and batches are made elsewhere, from the arrays returned here.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdlib.errors import CdlibError
from cdlib.files import atomic
from cdlib.text import digest

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"CMYK", "P", "PA", "RGB", "RGBA", "YCbCr"})


class Arrays(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


def cache_folder() -> Path:
    """Return the folder for what can be made again: `$CDLIB_CACHE`, or `~/.cache/cdlib`. It need not exist."""
    return Path(os.environ.get("CDLIB_CACHE") or "~/.cache/cdlib").expanduser()


def is_image_folder(root: Path) -> bool:
    """Say whether `root` has the two folders `train` and `test`."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def class_names(root: Path) -> tuple[str, ...]:
    """Return the classes of an image folder, sorted; a CdlibError if train/ and test/ do not hold the same, or none."""
    if not is_image_folder(root):
        raise CdlibError(f"{root} is not an image folder: it needs train/ and test/, each with a folder per class.")
    train, test = ({d.name for d in (root / part).iterdir() if d.is_dir()} for part in ("train", "test"))
    if only := sorted(train ^ test):
        where = "train" if only[0] in train else "test"
        raise CdlibError(f"train/ and test/ of {root} must hold the same classes, but {only[0]!r} is only in {where}/.")
    if not train:
        raise CdlibError(f"{root / 'train'} holds no folders; it needs one per class.")
    return tuple(sorted(train))


def read_folder(root: Path) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """Return the classes, the training images and the test images of an image folder.

    Images are RGB, unless every one of them is grey: then they have one channel. Alpha channels are dropped. Files
    whose suffix is not in `SUFFIXES`, and hidden ones, are passed over. All images must fit in memory. A CdlibError if
    classes are missing, empty or differ; if a file cannot be read, differs in size from the first one, or is of a kind
    that does not fit 8 bits (the file is named).
    """
    root = root.expanduser().resolve()
    classes = class_names(root)
    listings = [_listing(root / part, classes) for part in ("train", "test")]
    cache = cache_folder() / "folders" / f"{_key(root, listings)}.npz"
    if (found := _from_cache(cache)) is None:
        found = _decode(listings)
        _to_cache(cache, *found)
    return classes, *found


def _listing(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return (file, label) of every image, sorted by class and name."""
    listing: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        images = (file for file in (folder / name).iterdir() if file.suffix.lower() in SUFFIXES)
        files = sorted(file for file in images if not file.name.startswith("."))
        if not files:
            raise CdlibError(f"{folder / name} holds no images; put some there or remove the class.")
        listing += zip(files, repeat(label))
    return listing


def _key(root: Path, listings: list[list[tuple[Path, int]]]) -> str:
    """Return what changes when a file is added, removed, renamed or rewritten."""
    files = [(path, path.stat()) for listing in listings for path, _ in listing]
    said = (json.dumps([str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns]) for path, stat in files)
    return digest([str(root), *said])[:16]


def _from_cache(cache: Path) -> tuple[Arrays, Arrays] | None:
    if not cache.exists():
        return None
    try:
        with np.load(cache, allow_pickle=False) as f:
            return Arrays(f["train_images"], f["train_labels"]), Arrays(f["test_images"], f["test_labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"the image cache {cache} is damaged ({error}); decoding the images again.", stacklevel=4)
        return None


def _to_cache(cache: Path, train: Arrays, test: Arrays) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic(cache) as file:
            np.savez(
                file,
                train_images=train.images,
                train_labels=train.labels,
                test_images=test.images,
                test_labels=test.labels,
            )
    except OSError as error:
        warnings.warn(f"cannot keep the decoded images in {cache} ({error}); set CDLIB_CACHE.", stacklevel=4)


def _decode(listings: list[list[tuple[Path, int]]]) -> tuple[Arrays, Arrays]:
    """Decode every file, in threads (Pillow lets go of the interpreter while it decodes)."""
    from tqdm import tqdm

    files = [path for listing in listings for path, _ in listing]
    height, width, _ = _image(files[0])[0].shape
    images = np.empty((len(files), 3, height, width), np.uint8)

    def decode(i: int) -> bool:
        """Put an image in its place, and return whether it is grey."""
        pixels, mode = _image(files[i])
        h, w, _ = pixels.shape
        if (h, w) != (height, width):
            sizes = f"{files[i]} is {w}x{h} and {files[0]} is {width}x{height}"
            raise CdlibError(f"all images must have one size, but {sizes}; resize them first.")
        if mode not in _GREY | _COLOUR:
            why = f"has pixels of mode {mode!r}, which do not fit 8 bits"
            raise CdlibError(f"{files[i]} {why}; convert it to grey or RGB.")
        images[i] = pixels.transpose(2, 0, 1)
        return mode in _GREY

    bar = {"total": len(files), "unit": "img", "delay": 1, "mininterval": 0.5, "leave": False}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        grey = list(tqdm(pool.map(decode, range(len(files))), "decoding images", **bar))
    finally:
        pool.shutdown(cancel_futures=True)
    if all(grey):
        images = images[:, :1].copy()
    labels = np.array([label for listing in listings for _, label in listing], np.int64)
    n = len(listings[0])
    return Arrays(images[:n], labels[:n]), Arrays(images[n:], labels[n:])


def _image(path: Path) -> tuple[np.ndarray, str]:
    """Return one image as uint8 [H, W, 3], and its mode."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode  # before it is decoded
            return np.asarray(image.convert("RGB")), mode
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ... on damaged files
        raise CdlibError(f"{path} is not a readable image ({error}); replace or remove it.") from error
