"""Statistics over seeds: t intervals, paired t-tests, and Holm's correction for several tests."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """The mean of `n` values or pairs with its confidence interval, which is symmetric."""

    n: int
    mean: float
    low: float | None = None  # with fewer than two values, as is high
    high: float | None = None
    p: float | None = None  # of the two-sided t-test of a mean of 0; None if the test is undefined

    @property
    def half(self) -> float:
        """Half of the interval's length, NaN without one."""
        return math.nan if self.high is None else self.high - self.mean


def mean(values: Sequence[float]) -> Estimate:
    """The mean of at least one value with its t interval, and the p value of the t-test of a mean of 0."""
    n, middle = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(n, middle)
    if np.ptp(values) < 1e-9:  # rounding errors are no spread
        return Estimate(n, middle, middle, middle)
    test = stats.ttest_1samp(values, 0)
    return Estimate(n, middle, *map(float, test.confidence_interval(CONFIDENCE)), float(test.pvalue))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """`mean` of first - second over pairs, with a paired t-test; p is None if all differ by the same amount."""
    return mean(np.subtract(first, second).tolist())


def over_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """`difference` over the seeds that both have, None without one."""
    seeds = sorted({*first} & {*second})
    return difference([first[s] for s in seeds], [second[s] for s in seeds]) if seeds else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for several tests after Holm, among them those that are undefined or to come (None)."""
    defined = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(defined):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[i] = highest
    return corrected
