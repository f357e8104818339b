"""How far a test set's verdict on an accuracy, or on two, can be trusted.

Only the statistics: what is measured and compared is `cdlib.report`'s matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cdlib.errors import CdlibError

LEVEL = 0.05  # the p-value below which two networks count as told apart


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test on two networks that classified the same images.

    Attributes
    ----------
    images : int
        Images classified by both.
    lost : int
        Images that only the first network gets right.
    gained : int
        Images that only the second gets right. All others say nothing about the difference.
    p_value : float
        Two-sided: the chance of a split at least as uneven, if each of the disagreements were a coin's toss. 1 if
        there is none.
    images_needed : int or None
        About how many images, with disagreements as frequent and as uneven as here, it takes for the difference to
        stand out at the 5 % level; None if there is no difference at all.
    """

    images: int
    lost: int
    gained: int
    p_value: float
    images_needed: int | None

    @property
    def enough_data(self) -> bool:
        """Whether these images tell the two apart (p < 0.05). If not, they do not show them to be equal either."""
        return self.p_value < LEVEL

    def __str__(self) -> str:
        needed = "" if self.enough_data or self.images_needed is None else f", about {self.images_needed} images needed"
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

    Returns
    -------
    Paired

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
    if difference:  # by the normal approximation, which the exact test is a little stricter than
        needed = math.ceil(1.96**2 * len(before) * disagreements / difference**2)
        needed = max(needed, len(before) + 1) if p_value >= LEVEL else needed
    return Paired(len(before), lost, gained, p_value, needed)


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval for a share, for example an accuracy.

    Parameters
    ----------
    successes, trials : int
        Images classified correctly, and all. At least one trial.
    level : float, default 0.95
        The share of such intervals that hold the true value.

    Returns
    -------
    tuple of float
        Lower and upper end, in 0..1.

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
