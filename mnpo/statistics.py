"""How sure a figure is: bootstrap intervals over items, paired comparisons, and what counts alone can tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

WITHIN_NOISE, APART = "within noise", "apart"
CHUNK = 2**22  # items drawn at once: 32 MiB of indices


def interval(values: np.ndarray, resamples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, shape (items,)."""
    return _percentiles(_means(values, resamples, seed), confidence)


@dataclass(frozen=True)
class Comparison:
    """A difference of two means over the same items."""

    difference: float
    low: float
    high: float
    share: float
    """Twice the share of resamples on the other side of zero, at most 1: reads like a two-sided p-value."""

    @property
    def verdict(self) -> str:
        """Whether the interval leaves out zero."""
        return APART if self.low > 0 or self.high < 0 else WITHIN_NOISE


def paired(
    a: np.ndarray,
    b: np.ndarray,
    resamples: int,
    confidence: float,
    seed: int,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
) -> Comparison:
    """Mean of `a` minus mean of `b`, same items in the same order, shape (items,); the bootstrap resamples items.

    Args:
        weights: of the items in either mean, each of shape (items,); equal when None.

    Raises:
        ValueError: different lengths, or no items.
    """
    if a.shape != b.shape or not len(a):
        raise ValueError(f"paired comparison of {len(a)} and {len(b)} items")
    wa, wb = weights or (np.ones(len(a)), np.ones(len(b)))
    means = [_means(values, resamples, seed) for values in (wa * a, wa, wb * b, wb)]  # one seed: the same items in all
    differences = means[0] / means[1] - means[2] / means[3]
    low, high = _percentiles(differences, confidence)
    share = 2 * min(float((differences <= 0).mean()), float((differences >= 0).mean()))
    return Comparison(float(np.average(a, weights=wa) - np.average(b, weights=wb)), low, high, min(1.0, share))


def _means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of all items with replacement, shape (resamples,), a bounded number at once."""
    rng, n = np.random.default_rng(seed), len(values)
    rows = max(1, CHUNK // n)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def cyclic_triples(wins: np.ndarray) -> int:
    """How many triples of policies beat each other in a circle, a over b over c over a.

    Args:
        wins: [policies, policies], the row's win rate over the column; a beats b when it is above one half.
    """
    beats = (np.asarray(wins) > 0.5).astype(int)
    np.fill_diagonal(beats, 0)
    return int(np.trace(beats @ beats @ beats)) // 3  # each circle is met from each of its three policies


def normal_quantile(confidence: float) -> float:
    """Standard errors on either side of a mean that hold `confidence`: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def spread(values: list[float]) -> float | None:
    """Sample standard deviation; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def binomial_difference_error(a: float, b: float, items: int) -> float:
    """Standard error of the difference of two shares, each of `items`, as if independent and both at their mean.

    Shares are in [0, 1]. Two policies answer the same items and agree on many, so the true error is smaller: a gap that
    this calls apart is apart.
    """
    share = (a + b) / 2
    return math.sqrt(2 * share * (1 - share) / items)
