"""Means and differences over seeds: t intervals, paired t-tests, and Holm's correction for several of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["CONFIDENCE", "Estimate", "difference", "holm", "mean"]

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean with its interval.

    Attributes:
        n: Values, or pairs of values.
        mean: Of them.
        low: Lower end of the interval; None for less than two.
        high: Upper end.
        p: Of the two-sided t-test that the mean is 0; None where it cannot be made.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def mean(values: Sequence[float]) -> Estimate:
    """The mean, with the t interval of `CONFIDENCE`, of at least one value."""
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(n, middle)
    if np.ptp(values) < 1e-9:  # rounding is no spread
        return Estimate(n, middle, middle, middle)
    low, high = stats.t.interval(CONFIDENCE, n - 1, middle, stats.sem(values))
    return Estimate(n, middle, float(low), float(high))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first less second, pair by pair, with the interval and the p of the paired t-test.

    Without any spread there is no test: the p is then None.
    """
    found = mean(np.subtract(first, second).tolist())
    if found.n < 2 or found.low == found.high:
        return found
    return found._replace(p=float(stats.ttest_rel(first, second).pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p of several tests such that the chance of any false finding among them stays below the level, after Holm.

    Tests that could not be made (None) are not counted.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(made):
        highest = max(highest, min(1.0, p * (len(made) - rank)))
        corrected[i] = highest
    return corrected
