"""Verdicts on methods: better, worse, equivalent or undecided, from runs in pairs and a margin stated beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cdlib.errors import CdlibError
from cdlib.report.power import LEVEL
from cdlib.report.significance import mean_difference


@dataclass(frozen=True)
class Verdict:
    """What some paired differences say; as text, a sentence's predicate.

    Attributes
    ----------
    word : {"better", "worse", "equivalent", "undecided"}
        Equivalent, if the 90 % interval of the mean lies within the margin (two one-sided tests at 5 %); else better or
        worse, if the 95 % interval lies on one side of zero; else undecided.
    mean, low, high : float
        Of the differences: their mean and the ends of its 95 % interval, NaN for a single one.
    margin : float
        What difference would matter.
    n : int
        How many differences.
    unit : str
        Of all of these.
    """

    word: str
    mean: float
    low: float
    high: float
    margin: float
    n: int
    unit: str = "points"

    def __str__(self) -> str:
        size = f"{abs(self.mean):.1f} {self.unit}"
        what = {
            "better": f"better by {size}",
            "worse": f"worse by {size}",
            "equivalent": f"equivalent within {self.margin:g} {self.unit} (difference {self.mean:+.1f})",
            "undecided": f"not decided (difference {self.mean:+.1f} {self.unit})",
        }[self.word]
        if self.n < 2:
            return f"{what}, from one pair"
        return f"{what}, 95 % interval {self.low:+.1f} to {self.high:+.1f}, paired t-test of {self.n} pairs"


def verdict(one: Iterable[float], other: Iterable[float], *, margin: float, unit: str = "points") -> Verdict:
    """Say whether one method is better than another, worse, or equivalent, from runs in pairs.

    Parameters
    ----------
    one, other : iterable of float
        What the two reached, more being better, in pairs that share what chance did: a seed, and the dense network
        that it trained.
    margin : float
        The least difference that matters, chosen before the results were seen; in the unit of the values.
    unit : str, default "points"
        For the text.

    Returns
    -------
    Verdict
        With "undecided" for a single pair, whatever its difference.

    Raises
    ------
    CdlibError
        If there are no pairs, a value is not finite, or the margin is not positive.

    References
    ----------
    Schuirmann (1987), J. Pharmacokin. Biopharm. 15: 657-680, for the two one-sided tests.
    """
    a, b = (np.asarray(list(values), dtype=float) for values in (one, other))
    if not (isinstance(margin, int | float) and 0 < margin < math.inf):
        raise CdlibError(f"margin={margin!r}: give the least difference that matters, a positive number.")
    if not np.isfinite([*a, *b]).all():
        raise CdlibError(
            "a verdict is asked of runs of which one has no finite result: leave that pair out, and say so."
        )
    wide = mean_difference(a, b, paired=True, level=1 - LEVEL)
    narrow = mean_difference(a, b, paired=True, level=1 - 2 * LEVEL)
    if max(abs(narrow.low), abs(narrow.high)) < margin:
        word = "equivalent"
    elif wide.low > 0 or wide.high < 0:
        word = "better" if wide.low > 0 else "worse"
    else:
        word = "undecided"
    return Verdict(word, wide.mean, wide.low, wide.high, float(margin), len(a), unit)
