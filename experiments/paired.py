"""Statistics over seeds: t intervals, paired t-tests, and Holm's correction for several tests."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """The mean of `n` values or pairs with its confidence interval."""

    n: int
    mean: float
    low: float | None = None  # with fewer than two values, as is high
    high: float | None = None
    p: float | None = None  # of the two-sided t-test of a mean of 0; None if the test is undefined


def mean(values: Sequence[float]) -> Estimate:
    """The mean of at least one value with its t interval."""
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(n, middle)
    if np.ptp(values) < 1e-9:  # rounding errors are no spread
        return Estimate(n, middle, middle, middle)
    low, high = stats.t.interval(CONFIDENCE, n - 1, middle, stats.sem(values))
    return Estimate(n, middle, float(low), float(high))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first - second over pairs, with its interval and the p value of the paired t-test.

    The test is undefined (p is None) if all pairs differ by the same amount.
    """
    found = mean(np.subtract(first, second).tolist())
    if found.n < 2 or found.low == found.high:
        return found
    return found._replace(p=float(stats.ttest_rel(first, second).pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for several tests after Holm; undefined tests (None) do not count."""
    defined = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(defined):
        highest = max(highest, min(1.0, p * (len(defined) - rank)))
        corrected[i] = highest
    return corrected
