"""How far a verdict on an accuracy, or on two, can be trusted: from one test set, or from runs with several seeds.

Only the statistics: what is measured and compared is `cdlib.report`'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cdlib.errors import CdlibError
from cdlib.report import power
from cdlib.report.power import LEVEL


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test on two networks that classified the same images."""

    images: int  #: Images classified by both.
    lost: int  #: Images that only the first network gets right.
    gained: int  #: Images that only the second gets right. All others say nothing about the difference.
    #: Two-sided, the chance of a split at least as uneven, if each of the disagreements were a coin's toss; 1 if there
    #: are none.
    p_value: float
    #: About how many images it takes, with disagreements as frequent and as uneven as here, to find the difference with
    #: a chance of 80 % (`cdlib.report.images_needed`); None if there is no difference at all.
    images_needed: int | None

    @property
    def enough_data(self) -> bool:
        """Whether these images tell the two apart (p < 0.05). If not, they do not show them to be equal either."""
        return self.p_value < LEVEL

    def __str__(self) -> str:
        needed = (
            "" if self.enough_data or self.images_needed is None else f", about {self.images_needed:,} images needed"
        )
        verdict = "told apart" if self.enough_data else "too little data to tell apart"
        return (
            f"McNemar p = {self.p_value:.2g}: {self.lost} lost, {self.gained} gained of {self.images} images; "
            f"{verdict}{needed}"
        )


def mcnemar(before: Tensor, after: Tensor) -> Paired:
    """Test whether two networks differ in accuracy, by the images on which they disagree.

    Parameters
    ----------
    before, after : Tensor
        bool [N]: which images each classified correctly, in the same order.

    Raises
    ------
    CdlibError
        If the two are not of the same length or are empty.

    References
    ----------
    McNemar (1947), Psychometrika 12: 153-157; the exact (binomial) form.
    """
    from scipy.stats import binomtest

    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise CdlibError(
            f"correctness of shapes {tuple(before.shape)} and {tuple(after.shape)}; give one value per image, of the "
            "same images."
        )
    before, after = before.bool().cpu(), after.bool().cpu()
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    disagreements, difference = lost + gained, gained - lost
    p_value = float(binomtest(lost, disagreements).pvalue) if disagreements else 1.0
    needed = None
    if difference:
        needed = power.images_needed(disagreements / len(before), difference / len(before))
        needed = max(needed, len(before) + 1) if p_value >= LEVEL else needed
    return Paired(len(before), lost, gained, p_value, needed)


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the lower and upper end, in 0..1, of Wilson's interval for a share, for example an accuracy.

    Parameters
    ----------
    successes, trials : int
        Images classified correctly, and all. At least one trial.
    level : float, default 0.95
        The share of such intervals that hold the true value.

    Raises
    ------
    CdlibError
        If the counts or the level make no sense.

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22: 209-212.
    """
    from scipy.stats import binomtest

    if not (0 <= successes <= trials and trials > 0 and 0 < level < 1):
        raise CdlibError(
            f"{successes} of {trials} at level {level}: give 0 <= successes <= trials, trials > 0, 0 < level < 1."
        )
    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class MeanDifference:
    """By how much the mean of some runs is above that of others, with the ends of its interval."""

    mean: float  #: Of the first runs minus that of the second.
    low: float  #: The interval; NaN where there were too few runs for one.
    high: float  #: As `low`.

    @property
    def verdict(self) -> str:
        """In words: better than, worse than, or not to be told from (if the interval holds zero or there is none)."""
        return "better than" if self.low > 0 else "worse than" if self.high < 0 else "not to be told from"

    def __str__(self) -> str:
        ends = "" if math.isnan(self.low) else f" ({self.low:+.1f} to {self.high:+.1f})"
        return f"{self.mean:+.1f}{ends}"


def mean_difference(
    one: Iterable[float], other: Iterable[float], *, paired: bool = False, level: float = 0.95
) -> MeanDifference:
    """Compare the means of two methods over their seeds by a t-interval.

    Parameters
    ----------
    one, other : iterable of float
        A value per run, for example accuracies in percent. Two of each make an interval, fewer only a difference.
    paired : bool, default False
        Whether `one` and `other` come in pairs that share what chance did, a seed or a trained network: then the
        interval is that of the mean of the differences. Otherwise it is Welch's, which lets the spreads differ.
    level : float, default 0.95
        The share of such intervals that hold the true difference.

    Raises
    ------
    CdlibError
        If one of them is empty, the pairs do not come out, or the level is not between 0 and 1.

    References
    ----------
    Welch (1947), Biometrika 34: 28-35.
    """
    from scipy.stats import t

    a, b = (np.asarray(list(values), dtype=float) for values in (one, other))
    if not (len(a) and len(b) and 0 < level < 1) or (paired and len(a) != len(b)):
        raise CdlibError(
            f"{len(a)} runs against {len(b)} at level {level}: give at least one of each, as many of both if they are "
            "paired, and 0 < level < 1."
        )
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return MeanDifference(mean, math.nan, math.nan)
    variances = [part.var(ddof=1) / len(part) for part in ([a - b] if paired else [a, b])]
    freedom = [len(a) - 1, len(b) - 1]
    squares = sum(value**2 / n for value, n in zip(variances, freedom, strict=False))
    half = t.ppf((1 + level) / 2, sum(variances) ** 2 / squares) * sum(variances) ** 0.5 if squares else 0.0
    return MeanDifference(mean, float(mean - half), float(mean + half))
