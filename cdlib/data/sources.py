"""Where the data sets come from: a file that ships, scikit-learn, torchvision or an image folder, as arrays of bytes.

What the environment variable `CDLIB_DATA` does is said by `cdlib.data.load`, which makes splits of the arrays.
"""

from __future__ import annotations

import os
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdlib.data.image_folder import Arrays, cache_folder, class_names, is_image_folder, read_folder
from cdlib.data.seeds import chosen
from cdlib.errors import CdlibError, unknown
from cdlib.text import one_line

NAMES = ("digits", "cifar10-sample", "cifar10", "cifar100")
DIGITS_TEST = 0.2
"""Share of each class of the digits that is the test split."""

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Source(NamedTuple):
    """What a data set is made of: its classes, its arrays, and whether a mirrored image is as good an image.

    `statistics` are mean and standard deviation by channel, where they are not those of the training split.
    """

    classes: tuple[str, ...]
    train: Arrays
    test: Arrays
    flips: bool
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read(name: str, split_seed: int, *, download: bool) -> Source:
    """Return a data set's arrays; `split_seed` chooses the test split of those that come without one (digits)."""
    place = where(name)
    if name == "digits":
        return _digits(split_seed)
    if name == "cifar10-sample":
        return _sample(place)
    if name.startswith("folder:"):
        return Source(*read_folder(place), flips=True)
    if not is_image_folder(place):
        return _torchvision(name, place, download)
    if name != "cifar10":
        raise CdlibError(f"CDLIB_DATA={place} is an image folder; read it as 'folder:{place}', or unset CDLIB_DATA.")
    if (classes := class_names(place)) != _CIFAR10:
        raise CdlibError(
            f"CDLIB_DATA={place} does not hold the ten classes of CIFAR-10, but {', '.join(classes[:12])}."
        )
    return Source(*read_folder(place), flips=True)


def where(name: str) -> Path:
    """Return the file or folder from which `load(name)` reads, or where it will put what it fetches."""
    if name == "digits":
        import sklearn.datasets

        return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"
    if name == "cifar10-sample":
        return Path(__file__).parent / "cifar10-sample.npz"
    if name in NAMES:
        given = os.environ.get("CDLIB_DATA")
        folder = Path(given).expanduser() if given else cache_folder() / "data"
        if given and not folder.is_dir():
            raise CdlibError(f"CDLIB_DATA={given} is not a folder; create it, correct it, or unset it.")
        return folder
    if isinstance(name, str) and name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser()
    raise unknown("data set", name, [*NAMES, "folder:PATH"])


def _digits(split_seed: int) -> Source:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = ((raw.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, np.newaxis]
    labels = raw.target.astype(np.int64)
    test = chosen(labels, DIGITS_TEST, split_seed, "test")
    classes = tuple(str(name) for name in raw.target_names)
    return Source(classes, Arrays(images[~test], labels[~test]), Arrays(images[test], labels[test]), flips=False)


def _sample(file: Path) -> Source:
    """2,000 training and 1,000 test images of CIFAR-10, each class alike often, as JPEG files end to end."""
    import io

    from PIL import Image

    try:
        with np.load(file) as held:
            parts = {key: held[key] for key in held.files}
        ends, whole = parts["ends"], parts["jpeg"].tobytes()
        texts = (whole[start:end] for start, end in zip([0, *ends], ends, strict=False))
        images = np.stack([np.asarray(Image.open(io.BytesIO(text))).transpose(2, 0, 1) for text in texts])
        labels, test = parts["label"].astype(np.int64), parts["is_test"]
        train, test = (Arrays(images[part], labels[part]) for part in (~test, test))
        mean, std = (tuple(parts[key].tolist()) for key in ("mean", "std"))
        return Source(tuple(parts["classes"].tolist()), train, test, True, (mean, std))
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise CdlibError(f"{file} is damaged ({one_line(error)}): restore it from version control.") from error


def _torchvision(name: str, root: Path, download: bool) -> Source:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        parts = [kind(str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError, HTTPException) as error:
        raise CdlibError(
            f"no {name} in {root} ({error}); run cdlib data fetch {name} where there is a network, "
            f"or put {kind.url} (MD5 {kind.tgz_md5}) there as {root / kind.filename}."
        ) from error
    train, test = (Arrays(p.data.transpose(0, 3, 1, 2).copy(), np.array(p.targets, np.int64)) for p in parts)
    return Source(tuple(parts[0].classes), train, test, flips=True)
