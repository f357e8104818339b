"""Random bits that are a pure function of a purpose and of seeds, on every machine and in every version of NumPy."""

from __future__ import annotations

import numpy as np

from cdlib.errors import check_seed


def draws(purpose: str, n: int, *seeds: int) -> np.ndarray:
    """Return `n` random 64-bit words, a pure function of `purpose` and `seeds`.

    The raw output of PCG64 is fixed by NumPy's compatibility policy; permutations and floats made from it are not.
    """
    return bits(purpose, *seeds).random_raw(n)


def bits(purpose: str, *seeds: int) -> np.random.PCG64:
    """Return the random source that is a pure function of `purpose` and `seeds`; no two purposes share one."""
    return np.random.PCG64(np.random.SeedSequence((int.from_bytes(purpose.encode()), *seeds)))


def chosen(labels: np.ndarray, share: float, seed: int, purpose: str) -> np.ndarray:
    """Return a mask of about `share` of each class, drawn by the seed of a split; at least one image, and not all."""
    check_seed(seed, "split_seed")
    keys = draws(purpose, len(labels), seed)
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1) if share else 0
        mask[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    return mask
