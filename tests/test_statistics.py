"""Intervals and comparisons against closed forms and an independent bootstrap."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from mnpo import statistics
from mnpo.statistics import (
    APART,
    WITHIN_NOISE,
    binomial_difference_error,
    cyclic_triples,
    interval,
    normal_quantile,
    paired,
    spread,
)


def test_an_interval_of_many_coins_is_the_binomials() -> None:
    """400 coins, half heads: .5 +- 1.96 * sqrt(.25 / 400) = .5 +- .049."""
    low, high = interval(np.array([0.0, 1.0] * 200), 4000, 0.95, seed=0)
    assert (low, high) == (pytest.approx(0.451, abs=0.004), pytest.approx(0.549, abs=0.004))
    wider = interval(np.array([0.0, 1.0] * 200), 4000, 0.99, seed=0)
    assert wider[0] < low < high < wider[1]
    assert wider == (pytest.approx(0.5 - 0.0644, abs=0.006), pytest.approx(0.5 + 0.0644, abs=0.006))  # 2.576 sigma


def test_an_interval_of_equal_values_is_a_point_and_the_seed_decides() -> None:
    assert interval(np.full(10, 0.25), 200, 0.95, seed=0) == (0.25, 0.25)
    values = np.linspace(0, 1, 30)
    assert interval(values, 200, 0.95, seed=1) == interval(values, 200, 0.95, seed=1)
    assert interval(values, 200, 0.95, seed=1) != interval(values, 200, 0.95, seed=2)


@pytest.mark.parametrize("chunk", [1, 64, 1000, 2**22])
def test_drawing_in_chunks_is_drawing_at_once(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """The textbook percentile bootstrap, all draws in one array."""
    values = np.random.default_rng(3).normal(size=37)
    draws = np.random.default_rng(5).integers(0, 37, (500, 37))
    expected = np.quantile(values[draws].mean(axis=1), [0.05, 0.95])
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    assert interval(values, 500, 0.9, seed=5) == pytest.approx(tuple(expected), rel=1e-12)


def test_the_share_of_a_paired_comparison_by_hand() -> None:
    """Differences 1, 1, -1: three draws sum to no more than 0 when two or three are the -1: 3 (1/9)(2/3) + 1/27 = 7/27.

    They cannot sum to 0, so the share is twice that, 14/27.
    """
    result = paired(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 4.0]), 60_000, 0.95, seed=0)
    assert result.difference == pytest.approx(1 / 3)
    assert result.share == pytest.approx(14 / 27, abs=0.01)
    assert (result.low, result.high, result.verdict) == (-1.0, 1.0, WITHIN_NOISE)


def test_pairing_takes_out_what_the_items_share() -> None:
    """Items differ by 10 each, the policies by .5 on each: unpaired hopeless, paired certain."""
    items = np.arange(0, 200, 10.0)
    result = paired(items + 0.5, items, 500, 0.95, seed=1)
    assert (result.difference, result.low, result.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (result.share, result.verdict) == (0.0, APART)
    other_way = paired(items, items + 0.5, 500, 0.95, seed=1)
    assert (other_way.difference, other_way.verdict) == (-0.5, APART)
    same = paired(items, items, 500, 0.95, seed=1)
    assert (same.difference, same.share, same.verdict) == (0.0, 1.0, WITHIN_NOISE)


@pytest.mark.parametrize(("a", "b"), [(3, 2), (0, 0)])
def test_a_paired_comparison_needs_the_same_items(a: int, b: int) -> None:
    with pytest.raises(ValueError, match=f"paired comparison of {a} and {b} items"):
        paired(np.zeros(a), np.zeros(b), 100, 0.95, seed=0)


def test_normal_quantiles_are_those_of_the_tables() -> None:
    assert [round(normal_quantile(c), 3) for c in (0.9, 0.95, 0.99)] == [1.645, 1.96, 2.576]


def test_spreads_by_hand() -> None:
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert spread([1.0]) is None


def test_the_binomial_error_of_a_difference() -> None:
    """Two fair coins of 100 throws: sqrt(.25 / 100 + .25 / 100) = .0707. None of 30 against one has an error too."""
    assert binomial_difference_error(0.5, 0.5, 100) == pytest.approx(math.sqrt(0.005))
    assert binomial_difference_error(0.0, 1 / 30, 30) == pytest.approx(math.sqrt(2 * (1 / 60) * (59 / 60) / 30))
    assert binomial_difference_error(0.0, 0.0, 30) == 0.0


def test_a_binomial_gap_is_apart_no_more_often_than_it_says() -> None:
    """Two policies of equal strength, 20,000 times: a gap over 1.96 errors comes up in 5 of 100."""
    rng = np.random.default_rng(0)
    a, b = rng.binomial(198, 0.3, (2, 20_000)) / 198
    errors = np.array([binomial_difference_error(x, y, 198) for x, y in zip(a, b, strict=True)])
    assert (np.abs(a - b) > normal_quantile(0.95) * errors).mean() == pytest.approx(0.05, abs=0.006)


def test_a_weighted_comparison_is_the_difference_of_weighted_means() -> None:
    """Two items of weights 1 and 3: (1 * 1 + 3 * 0) / 4 = 0.25 against (2 * 0 + 2 * 1) / 4 = 0.5."""
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    result = paired(a, b, 200, 0.95, 0, (np.array([1.0, 3.0]), np.array([2.0, 2.0])))
    assert result.difference == pytest.approx(-0.25)
    # Resamples are (item 1 twice), (one of each), (item 2 twice): differences 1, -0.25, -1.
    assert result.low == -1 and result.high == 1


def test_cyclic_triples_of_random_tournaments_are_those_of_all_triples_looked_at() -> None:
    """Rock, paper, scissors is one circle, an order none; ties beat nobody; else by looking at every triple."""
    assert cyclic_triples(np.array([[0.5, 0.4, 0.6], [0.6, 0.5, 0.4], [0.4, 0.6, 0.5]])) == 1
    assert cyclic_triples(np.full((5, 5), 0.5)) == 0
    rng = np.random.default_rng(0)
    for n in (3, 4, 7):
        upper = np.triu(rng.choice([0.2, 0.5, 0.8], (n, n)), 1)
        wins = upper + np.tril(1 - upper.T, -1)
        circles = sum(
            any(wins[i, j] > 0.5 and wins[j, k] > 0.5 and wins[k, i] > 0.5 for i, j, k in ((a, b, c), (a, c, b)))
            for a, b, c in combinations(range(n), 3)
        )
        assert cyclic_triples(wins) == circles
