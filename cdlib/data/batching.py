"""Batches made where the images live: shuffle, crop, flip and normalise a whole batch at once, from one tensor.

There are no worker processes and no transfers, so a training step never waits for its data. All random numbers of an
epoch are drawn on the CPU from (seed, epoch): the same batches come out on every device, and cutting them over several
processes changes only who computes which rows. What the images are is `cdlib.data`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cdlib.data.seeds import draws
from cdlib.data.splits import Split
from cdlib.errors import CdlibError, check_seed, check_whole


def batches(
    split: Split,
    batch_size: int,
    *,
    augment: bool = False,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over `split` in batches of normalised images and labels.

    Augmentation moves each image by up to an eighth of its shorter side, at most 4 pixels, in both directions (4 pixels
    at 32x32, 1 pixel at 8x8), filling in by reflection, and mirrors half of the images if `split.flips`. It is the
    usual "pad, crop at random, flip" of CIFAR training.

    Parameters
    ----------
    split : Split
        Where the images are; the batches are made on `split.images.device`.
    batch_size : int
        Images in a global batch, that is over all processes together.
    augment : bool, default False
        Move and mirror the images at random. Needs a seed.
    seed : int or None, default None
        None goes through the images in order. Otherwise order and augmentation are a pure function of (seed, epoch),
        the same on every device.
    epoch : int, default 0
        Which shuffle.
    rank, world : int, default 0 and 1
        This process and their number. Process `rank` gets the `rank`-th of `world` consecutive parts of every global
        batch: all parts of all processes, put together, are the batches of one process.
    drop_last : bool, default False
        Leave out the last batch if it is incomplete. If it is kept and there are fewer images than processes, some
        processes make one batch less.

    Yields
    ------
    x : Tensor, float32 [n, C, H, W]
        Normalised images.
    y : Tensor, int64 [n]
        Labels.

    Raises
    ------
    CdlibError
        For sizes, seeds and ranks that cannot be used as given.
    """
    check_whole("batch_size", batch_size, 1)
    check_whole("epoch", epoch, 0)
    if seed is not None:
        check_seed(seed)
    if not 0 <= rank < world:
        raise CdlibError(f"rank must be from 0 to world - 1 = {world - 1}, not {rank}.")
    if batch_size % world:
        raise CdlibError(f"batch_size {batch_size} cannot be cut into {world} equal parts; use a multiple of {world}.")
    if augment and seed is None:
        raise CdlibError("augmentation draws random numbers: give batches a seed, or augment=False.")
    return _generate(split, batch_size, augment, seed, epoch, rank, world, drop_last)


def _generate(
    split: Split, size: int, augment: bool, seed: int | None, epoch: int, rank: int, world: int, drop_last: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    device, n = split.images.device, len(split)
    keys = np.zeros(n, np.uint64) if seed is None else draws("order", n, seed, epoch)
    order = torch.from_numpy(np.argsort(keys, kind="stable")).to(device)
    moves = _Moves(split, draws("moves", n, seed, epoch)) if augment and seed is not None else None
    scale, shift = split.affine()
    for start in range(0, n - size + 1 if drop_last else n, size):
        index = order[start : start + size].tensor_split(world)[rank]
        if len(index):
            images = split.images[index]
            if moves is not None:
                images = moves.apply(images, index)
            yield images.float().mul_(scale).add_(shift), split.labels[index]


class _Moves:
    """Each image's shift and flip for one epoch, applied to a batch as one gather."""

    def __init__(self, split: Split, words: np.ndarray) -> None:
        device, (height, width) = split.images.device, split.images.shape[-2:]
        reach = min(4, min(height, width) // 8)
        places = 2 * reach + 1
        self.rows = _shifted(height, reach).to(device)
        cols = _shifted(width, reach)
        self.cols = torch.cat([cols, cols.flip(1)]).to(device)  # the second half mirrors the image
        down = (words & np.uint64(0xFFFFFFFF)) % np.uint64(places)
        right = (words >> np.uint64(32) & np.uint64(0x7FFFFFFF)) % np.uint64(places)
        mirror = words >> np.uint64(63) if split.flips else np.zeros_like(words)
        self.down = torch.from_numpy(down.astype(np.int64)).to(device)
        self.across = torch.from_numpy((right + mirror * np.uint64(places)).astype(np.int64)).to(device)

    def apply(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the images [n, C, H, W] of the rows `index` of the split, moved."""
        n, channels, height, width = images.shape
        rows, cols = self.rows[self.down[index]], self.cols[self.across[index]]
        source = (rows.unsqueeze(2) * width + cols.unsqueeze(1)).view(n, 1, height * width)
        return images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)


def _shifted(side: int, reach: int) -> Tensor:
    """Return [2 * reach + 1, side]: where each pixel of a side comes from at each shift, reflected at the borders."""
    source = torch.arange(side) + torch.arange(-reach, reach + 1).unsqueeze(1)
    return (side - 1) - ((side - 1) - source.abs()).abs()
