"""McNemar's test, Wilson's interval and t-intervals of differences against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cdlib.errors import CdlibError
from cdlib.report import mcnemar, mean_difference, wilson


def pair(lost: int, gained: int, both: int = 0, neither: int = 0) -> tuple[Tensor, Tensor]:
    """Correctness of two networks, given the four counts."""
    before = [True] * lost + [False] * gained + [True] * both + [False] * neither
    after = [False] * lost + [True] * gained + [True] * both + [False] * neither
    return torch.tensor(before), torch.tensor(after)


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 2**5),  # five disagreements never suffice,
        (0, 6, 2 / 2**6),  # six do if all go one way
        (1, 8, 2 * (1 + 9) / 2**9),
        (8, 1, 2 * (1 + 9) / 2**9),
    ],
)
def test_mcnemar_is_a_tossed_coin(lost: int, gained: int, p_value: float) -> None:
    result = mcnemar(*pair(lost, gained, both=50, neither=10))
    assert (result.images, result.lost, result.gained) == (60 + lost + gained, lost, gained)
    assert result.p_value == pytest.approx(p_value)
    assert result.enough_data == (p_value < 0.05)


def test_images_on_which_both_agree_say_nothing() -> None:
    few, many = mcnemar(*pair(2, 7, both=10)), mcnemar(*pair(2, 7, both=9_000, neither=800))
    assert few.p_value == many.p_value


def test_how_many_images_it_would_take() -> None:
    # With a share d of disagreements and a difference e, (1.96 sqrt(d) + 0.8416 sqrt(d - e^2))^2 / e^2 (Connor 1987).
    by_hand = (1.959964 * math.sqrt(0.03) + 0.841621 * math.sqrt(0.03 - 0.01**2)) ** 2 / 0.01**2
    assert mcnemar(*pair(10, 20, both=970)).images_needed == math.ceil(by_hand) == 2353
    assert mcnemar(*pair(5, 5, both=90)).images_needed is None
    assert "about 2,353 images needed" in str(mcnemar(*pair(10, 20, both=970)))
    assert "needed" not in str(mcnemar(*pair(0, 30, both=970)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)),
        (torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool)),
        (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)),
    ],
)
def test_pairs_that_are_no_pairs_are_refused(before: Tensor, after: Tensor) -> None:
    with pytest.raises(CdlibError, match="one value per image"):
        mcnemar(before, after)


def test_wilsons_interval() -> None:
    low, high = wilson(37, 40)
    z, n, share = 1.959964, 40, 37 / 40
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert (round(low, 2), round(high, 2)) == (0.80, 0.97)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    wide = wilson(37, 40, 0.99)
    assert wide[0] < low < high < wide[1]


@pytest.mark.parametrize(("successes", "trials", "level"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_counts_that_make_no_sense_are_refused(successes: int, trials: int, level: float) -> None:
    with pytest.raises(CdlibError, match="successes <= trials"):
        wilson(successes, trials, level)


def test_more_images_are_needed_than_were_too_few() -> None:
    """All of five images are lost: not enough by the exact test, though four would do by the approximation."""
    before = torch.ones(5, dtype=torch.bool)
    paired = mcnemar(before, ~before)
    assert (paired.enough_data, paired.images_needed) == (False, 6)


def test_interval_of_a_mean_difference_by_hand() -> None:
    found = mean_difference([3.0, 5.0], [1.0, 1.0, 1.0], level=0.5)
    # The second does not vary, so Welch's degree of freedom is that of the first, 1, where the quartile of t is 1.
    assert (found.mean, round(found.low, 9), round(found.high, 9)) == (3.0, 2.0, 4.0)  # 3 -+ sqrt(2 / 2)
    assert (found.verdict, str(found)) == ("better than", "+3.0 (+2.0 to +4.0)")


def test_pairs_take_out_what_both_share() -> None:
    one, other = [90.0, 60.0], [91.0, 63.0]
    found = mean_difference(one, other, paired=True, level=0.5)  # differences -1 and -3
    assert (found.mean, round(found.low, 9), round(found.high, 9)) == (-2.0, -3.0, -1.0)
    assert found.verdict == "worse than"
    assert mean_difference(one, other).verdict == "not to be told from"


def test_an_interval_against_scipy() -> None:
    from scipy.stats import ttest_ind

    one, other = [91.0, 92.5, 90.1], [88.0, 93.0, 90.5, 89.0]
    found, known = mean_difference(one, other), ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_single_runs_have_a_difference_and_no_interval() -> None:
    found = mean_difference([2.0], [1.5, 2.5])
    assert str(found) == "+0.0" and math.isnan(found.low) and found.verdict == "not to be told from"


@pytest.mark.parametrize(("one", "other", "level"), [([], [1.0], 0.95), ([1.0, 2.0], [1.0], 0.95), ([1.0], [2.0], 1.0)])
def test_runs_that_cannot_be_compared(one: list[float], other: list[float], level: float) -> None:
    with pytest.raises(CdlibError, match="give at least one of each"):
        mean_difference(one, other, paired=True, level=level)
