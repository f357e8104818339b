"""How much data it takes to find a difference: test images for two networks, seeds for two methods."""

from __future__ import annotations

import math

from cdlib.errors import CdlibError

LEVEL = 0.05
"""The p-value below which two networks, or two methods, count as told apart."""


def pairs_needed(difference: float, deviation: float, *, power: float = 0.8, paired: bool = True) -> int:
    """Return how many seeds it takes to tell a difference from none.

    Parameters
    ----------
    difference : float
        Between the means of two methods.
    deviation : float
        Standard deviation over seeds: of the differences of pairs, or of each method if they are not `paired`.
    power : float, default 0.8
        The chance that the test finds the difference at the 5 % level.
    paired : bool, default True
        Whether runs come in pairs; otherwise as many of each method.

    Returns
    -------
    int
        By the noncentral t distribution; at least 2.

    Raises
    ------
    CdlibError
        If one of them is not positive, or the power not between 0 and 1.
    """
    from scipy.stats import nct, t

    if not (abs(difference) > 0 and deviation > 0 and 0 < power < 1):
        raise CdlibError(
            f"difference={difference!r}, deviation={deviation!r}, power={power!r}: give numbers that are not 0, and a "
            "power between 0 and 1."
        )
    groups = 1 if paired else 2

    def reached(n: int) -> float:
        freedom, shift = groups * (n - 1), abs(difference) / deviation * math.sqrt(n / groups)
        edge = t.ppf(1 - LEVEL / 2, freedom)
        return float(nct.sf(edge, freedom, shift) + nct.cdf(-edge, freedom, shift))

    low, high = 1, 2
    while reached(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def images_needed(disagreements: float, difference: float, *, power: float = 0.8) -> int:
    """Return how many test images it takes to tell two networks apart by McNemar's test at the 5 % level.

    Parameters
    ----------
    disagreements : float
        The share of images that exactly one of the two gets right.
    difference : float
        Of the two accuracies, a share as well.
    power : float, default 0.8
        The chance that the test finds it.

    Raises
    ------
    CdlibError
        If the difference is 0 or more than the disagreements, or a share is none.

    References
    ----------
    Connor (1987), Biometrics 43: 207-211.
    """
    from scipy.stats import norm

    if not (0 < abs(difference) <= disagreements <= 1 and 0 < power < 1):
        raise CdlibError(
            f"disagreements={disagreements!r}, difference={difference!r}, power={power!r}: give shares, the difference "
            "not 0 and not more than the disagreements."
        )
    one, other = norm.ppf(1 - LEVEL / 2), norm.ppf(power)
    root = one * math.sqrt(disagreements) + other * math.sqrt(disagreements - difference**2)
    return math.ceil((root / difference) ** 2)
