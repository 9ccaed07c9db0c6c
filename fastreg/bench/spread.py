"""Statistics of timings: the median of a sample, and how far it can be trusted.

Contract: times come with their quartiles, which tell how noisy the machine was; ratios come with a
95 % confidence interval of their median, which tells what the run has shown. Ratios of samples that
were taken in turn are formed within each turn before the median, so that a slow spell of the
machine, which hits all variants of a turn, cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median, quantiles
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Spread:
    """A median between two bounds: quartiles or the ends of a confidence interval.

    Examples
    --------
    >>> Spread.quartiles([3.0, 1.0, 2.0, 5.0, 4.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def quartiles(cls, sample: Sequence[float]) -> Spread:
        """Return median and quartiles."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        low, _, high = quantiles(sample, n=4, method="inclusive")
        return cls(median(sample), low, high)

    @classmethod
    def interval(cls, sample: Sequence[float]) -> Spread:
        """Return the median and its confidence interval, whatever the distribution.

        Its ends are members of the sample: the true median lies below the k-th smallest value with
        the probability that fewer than k of n fair coins show heads. Fewer than six values cannot
        support the confidence, and give their range.

        Examples
        --------
        >>> Spread.interval([float(n) for n in range(31)])
        Spread(median=15.0, low=9.0, high=21.0)
        """
        ordered = sorted(sample)
        outside = _ranks_outside(len(ordered))
        return cls(median(ordered), ordered[outside], ordered[-1 - outside])

    @classmethod
    def of_ratio(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
        """Return the interval of the turn-by-turn ratios of two samples of one run.

        Examples
        --------
        >>> Spread.of_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).median
        2.0
        """
        return cls.interval([n / d for n, d in zip(numerator, denominator, strict=True)])

    @classmethod
    def of_medians(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
        """Return the ratio of the medians of two runs, with a bootstrap percentile interval.

        Examples
        --------
        >>> Spread.of_medians([2.0, 2.0, 2.0], [4.0, 4.0])
        Spread(median=0.5, low=0.5, high=0.5)
        """
        rng = np.random.default_rng(20260101)

        def resampled(sample: Sequence[float]) -> np.ndarray[Any, Any]:
            values = np.asarray(sample, dtype=np.float64)
            picked = rng.integers(0, len(values), (RESAMPLES, len(values)))
            return np.asarray(np.median(values[picked], axis=1))

        tail = (1 - CONFIDENCE) / 2
        ratios = resampled(numerator) / resampled(denominator)
        low, high = np.quantile(ratios, (tail, 1 - tail))
        return cls(median(numerator) / median(denominator), float(low), float(high))

    def excludes(self, number: float) -> bool:
        """Return whether the number lies outside the bounds."""
        return not self.low <= number <= self.high


def _ranks_outside(size: int) -> int:
    """Return how many values on each side of the interval the confidence can do without."""
    tail, rank = 0.0, 0
    while True:
        tail += comb(size, rank) / 2**size
        if tail > (1 - CONFIDENCE) / 2:
            return max(rank - 1, 0)
        rank += 1
