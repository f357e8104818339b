"""Short texts that are made in one way everywhere: a line from an error, mean and spread, the digest of bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from cdlib.errors import CdlibError


def one_line(error: BaseException, limit: int = 160) -> str:
    """Return an error as one line, such as ``ValueError: no such file``, with its cause in brackets if it names one.

    `limit` is for the length of each message. A `CdlibError` is its message, whole: it is one line, and the reason
    stands last in it.
    """
    message = " ".join(str(error).split())
    if isinstance(error, CdlibError):
        return message.rstrip(".")
    found = f"{type(error).__name__}: {message[:limit]}" if message else type(error).__name__
    return f"{found} ({one_line(error.__cause__, limit)})" if error.__cause__ else found


def mean_and_spread(values: Iterable[float], *, factor: float = 1.0, digits: int = 1, sign: bool = False) -> str:
    """Return the mean and, of values that differ, their standard deviation (with n - 1), for example ``91.2 ± 0.3``.

    NaN are left out; of no values at all the text is ``-``. Both are multiplied by `factor` (100 for percent) and have
    `digits` after the point; with `sign` a positive mean has a plus before it, as for differences.
    """
    found = factor * np.asarray(list(values), dtype=float)
    found = found[~np.isnan(found)]
    if not found.size:
        return "-"
    mean = f"{found.mean():{'+' * sign}.{digits}f}"
    return f"{mean}\u00a0±\u00a0{found.std(ddof=1):.{digits}f}" if len(np.unique(found)) > 1 else mean


def digest(parts: Iterable[str | bytes | memoryview]) -> str:
    """Return the SHA-256 of parts one after the other, texts in UTF-8, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()
