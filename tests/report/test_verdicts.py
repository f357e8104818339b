"""Verdicts against hand-made numbers, and powers against statsmodels' formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cdlib import CdlibError
from cdlib.report import images_needed, pairs_needed, verdict

BASE = np.array([80.0, 81.0, 79.5, 80.5, 80.2])


@pytest.mark.parametrize(
    ("differences", "margin", "word"),
    [
        ([1.0, 1.2, 0.8, 1.1, 0.9], 0.5, "better"),
        ([-1.0, -1.2, -0.8, -1.1, -0.9], 0.5, "worse"),
        ([0.1, -0.1, 0.05, -0.05, 0.0], 0.5, "equivalent"),
        ([0.2, 0.25, 0.15, 0.2, 0.2], 0.5, "equivalent"),  # above zero, and too little to matter
        ([2.0, -2.0, 1.0, -1.0, 0.5], 0.5, "undecided"),
        ([5.0], 0.5, "undecided"),
    ],
)
def test_words(differences: list[float], margin: float, word: str) -> None:
    base = BASE[: len(differences)]
    found = verdict(base + differences, base, margin=margin)
    assert (found.word, found.n) == (word, len(differences))
    assert found.mean == pytest.approx(np.mean(differences))


def test_the_interval_is_that_of_a_table() -> None:
    """Differences 1 to 5: mean 3, deviation 1.5811, t of 4 degrees 2.7764, so 3 ± 1.9632."""
    found = verdict(BASE + np.arange(1, 6), BASE, margin=0.5)
    assert (found.low, found.high) == pytest.approx((3 - 1.9632, 3 + 1.9632), abs=1e-4)
    assert str(found) == "better by 3.0 points, 95 % interval +1.0 to +5.0, paired t-test of 5 pairs"


def test_equivalence_is_two_tests_at_five_per_cent() -> None:
    """The edge: t of 4 degrees at 95 %, 2.1318, over the root of 5, times the deviation 1.5811, is 1.5074."""
    differences = np.array([-2.0, -1, 0, 1, 2])
    assert verdict(BASE + differences, BASE, margin=1.508).word == "equivalent"
    assert verdict(BASE + differences, BASE, margin=1.507).word == "undecided"


def test_how_often_verdicts_are_wrong() -> None:
    """Of 2,000 pairs of equal methods 5 % are told apart; of those a margin apart 5 % are called equivalent."""
    rng = np.random.default_rng(0)
    for shift, words in ((0.0, {"better", "worse"}), (0.5, {"equivalent"})):
        found = [verdict(rng.normal(shift, 0.3, 5), np.zeros(5), margin=0.5).word for _ in range(2000)]
        assert sum(word in words for word in found) / 2000 < 0.065


@pytest.mark.parametrize(("difference", "deviation", "n"), [(1.0, 1.0, 10), (0.5, 1.0, 34), (2.0, 0.5, 3)])
def test_pairs_needed_as_in_tables_of_power(difference: float, deviation: float, n: int) -> None:
    """Cohen's d of 1 takes 10 pairs and of 0.5 takes 34 (Cohen 1988; G*Power)."""
    assert pairs_needed(difference, deviation) == n


def test_two_groups_as_in_tables_of_power() -> None:
    """Cohen's d of 0.5 takes 64 of each group, of 0.8 takes 26 (Cohen 1988, table 2.4.1)."""
    assert [pairs_needed(d, 1.0, paired=False) for d in (0.5, 0.8)] == [64, 26]


def test_images_needed_are_enough_in_a_simulation() -> None:
    from scipy.stats import binomtest

    n = images_needed(0.1, 0.02)
    assert n == math.ceil(((1.959964 * math.sqrt(0.1) + 0.841621 * math.sqrt(0.1 - 0.0004)) / 0.02) ** 2)
    rng, found = np.random.default_rng(0), 0
    for _ in range(1000):
        gained, lost, _ = rng.multinomial(n, [0.06, 0.04, 0.9])
        found += binomtest(lost, gained + lost).pvalue < 0.05
    assert 0.75 < found / 1000 < 0.84


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: verdict([1, 2], [1, 2], margin=0), "margin=0: give the least difference that matters"),
        (lambda: verdict([1, math.nan], [1, 2], margin=1), "no finite result"),
        (lambda: verdict([], [], margin=1), "0 runs against 0"),
        (lambda: verdict([1, 2], [1], margin=1), "2 runs against 1"),
        (lambda: pairs_needed(0, 1), "difference=0"),
        (lambda: images_needed(0.01, 0.02), "disagreements=0.01"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(CdlibError, match=message):
        call()
