"""Batches made where the images live: shuffle, crop, flip and normalise a whole batch at once, from one tensor.

There are no worker processes and no transfers, so a training step never waits for its data. All random numbers of an
epoch are drawn on the CPU from (seed, epoch): the same batches come out on every device, and cutting them over several
processes changes only who computes which rows. What the images are is `cdlib.data`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cdlib.data.seeds import draws
from cdlib.data.splits import Split
from cdlib.errors import CdlibError, check_seed, check_whole

Mover = Callable[[Tensor, Tensor], Tensor]
"""What moves the images of some rows of a split."""


def batches(
    split: Split,
    batch_size: int,
    *,
    augment: bool = False,
    shift: int | None = None,
    alternate: bool = False,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate once over `split` in batches of normalised images and labels.

    Augmentation moves each image in both directions, filling in by reflection, and mirrors half of the images if
    `split.flips`. It is the usual "pad, crop at random, flip" of CIFAR training. A CdlibError for sizes, seeds and
    ranks that make no sense.

    Parameters
    ----------
    split : Split
        Where the images are; the batches are made on `split.images.device`.
    batch_size : int
        Images in a global batch, that is over all processes together.
    augment : bool, default False
        Move and mirror the images at random. Needs a seed.
    shift : int or None, default None
        By how many pixels at most; None for an eighth of the shorter side, at most 4 (4 at 32x32, 1 at 8x8).
    alternate : bool, default False
        Mirror half of the images in even epochs and the others in odd ones, so that an image is seen both ways in any
        two epochs, as in airbench (Jordan 2024, arXiv:2404.00498, section 3.6), instead of by chance in each.
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
    sides = split.images.shape[-2:]
    if shift is not None and not (type(shift) is int and 0 <= shift < min(sides)):
        raise CdlibError(f"shift={shift!r}: give a number of pixels from 0 to {min(sides) - 1}, or None.")
    moved = None
    if augment and seed is not None:
        reach = min(4, min(sides) // 8) if shift is None else shift
        words = draws("moves", len(split), seed, epoch)
        mirror = draws("mirror", len(split), seed) + np.uint64(epoch) if alternate else words >> np.uint64(63)
        moved = _mover(split, reach, words, mirror & np.uint64(split.flips))
    return _generate(split, batch_size, moved, seed, epoch, rank, world, drop_last)


def _generate(
    split: Split, size: int, moved: Mover | None, seed: int | None, epoch: int, rank: int, world: int, drop_last: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    device, n = split.images.device, len(split)
    keys = np.zeros(n, np.uint64) if seed is None else draws("order", n, seed, epoch)
    order = torch.from_numpy(np.argsort(keys, kind="stable")).to(device)
    scale, shift = split.affine()
    for start in range(0, n - size + 1 if drop_last else n, size):
        index = order[start : start + size].tensor_split(world)[rank]
        if len(index):
            images = split.images[index]
            if moved is not None:
                images = moved(images, index)
            yield images.float().mul_(scale).add_(shift), split.labels[index]


def _mover(split: Split, reach: int, words: np.ndarray, mirror: np.ndarray) -> Mover:
    """Return what shifts the images [n, C, H, W] of some rows of a split by up to `reach` pixels, and mirrors them.

    Each row's word says where to, and `mirror` is 1 for those to mirror.
    """
    device, (height, width) = split.images.device, split.images.shape[-2:]
    places = 2 * reach + 1
    rows, cols = _shifted(height, reach).to(device), _shifted(width, reach)
    cols = torch.cat([cols, cols.flip(1)]).to(device)  # the second half mirrors the image
    down = (words & np.uint64(0xFFFFFFFF)) % np.uint64(places)
    right = (words >> np.uint64(32) & np.uint64(0x7FFFFFFF)) % np.uint64(places)
    across = right + mirror * np.uint64(places)
    row, col = (torch.from_numpy(which.astype(np.int64)).to(device) for which in (down, across))

    def moved(images: Tensor, index: Tensor) -> Tensor:
        source = rows[row[index]].unsqueeze(2) * width + cols[col[index]].unsqueeze(1)
        source = source.view(len(index), 1, height * width).expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, source).view_as(images)

    return moved


def _shifted(side: int, reach: int) -> Tensor:
    """Return [2 * reach + 1, side]: where each pixel of a side comes from at each shift, reflected at the borders."""
    source = torch.arange(side) + torch.arange(-reach, reach + 1).unsqueeze(1)
    return (side - 1) - ((side - 1) - source.abs()).abs()
