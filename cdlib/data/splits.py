"""A data set in memory: its splits, each a tensor of images and one of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cdlib.data.seeds import draws
from cdlib.errors import CdlibError, check_seed
from cdlib.text import digest


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set; batches of it are normalised with mean and deviation of the *training* split's pixels."""

    name: str  #: For example "digits/test".
    images: Tensor  #: uint8 [N, C, H, W].
    labels: Tensor  #: int64 [N].
    mean: tuple[float, ...]  #: Per channel, in units of 0..1.
    std: tuple[float, ...]  #: The standard deviation, likewise.
    flips: bool  #: Whether a mirrored image is as good an image, as with natural images, not digits.
    fingerprint: str  #: First 16 hex digits of the SHA-256 of images and labels.

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`; the split itself if it is there already."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift, float32 [C, 1, 1]: an image times scale plus shift is normalised."""
        mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.mean, self.std))
        device = self.images.device
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)

    def sample(self, n: int, seed: int = 0) -> Split:
        """Return the split of `n` images drawn at random, the same for the same seed; a CdlibError if there are fewer.

        The first images of a split may well be all of one class, since folders are read class by class.
        """
        self._check(n)
        check_seed(seed)
        drawn = torch.from_numpy(np.argsort(draws("sample", len(self), seed), kind="stable")[:n].copy())
        images, labels = (t[drawn.to(t.device)] for t in (self.images, self.labels))
        marks = fingerprint(images.cpu().numpy(), labels.cpu().numpy())
        return replace(self, name=f"{self.name}, {n} images", images=images, labels=labels, fingerprint=marks)

    def input(self, n: int = 1) -> Tensor:
        """Return the first `n` images, normalised: float32 [n, C, H, W], an example input for a network."""
        scale, shift = self.affine()
        self._check(n)
        return self.images[:n].float().mul_(scale).add_(shift)

    def _check(self, n: int) -> None:
        if not 1 <= n <= len(self):
            raise CdlibError(f"{self.name} has {len(self)} images; ask for 1 to {len(self)} of them, not {n}.")


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the first 16 hex digits of the SHA-256 of images [N, C, H, W] and labels [N]."""
    arrays = (np.ascontiguousarray(array) for array in (images, labels))
    return digest([repr(images.shape), *(array.data for array in arrays)])[:16]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: its classes, in the order of the labels, and its three splits, which are disjoint."""

    name: str
    classes: tuple[str, ...]
    train: Split  #: What networks learn from.
    validation: Split  #: What choices are made on; empty if it was loaded with `validation=0`.
    test: Split  #: What results are measured on.

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 over all images and labels and the way they are split."""
        return digest(s.fingerprint for s in (self.train, self.validation, self.test))[:16]
