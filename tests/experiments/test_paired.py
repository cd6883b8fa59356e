import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paired import difference, holm
from scipy import stats

ACCURACIES = st.floats(0, 1).map(lambda x: round(x, 4))


@given(st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=2, max_size=8))
def test_differences_are_scipys_paired_test(pairs):
    first, second = np.array(pairs).T
    found = difference(first, second)
    assert found.mean == pytest.approx((first - second).mean())
    if np.ptp(first - second) < 1e-9:
        assert (found.p, found.low) == (None, found.high)
        return
    test = stats.ttest_rel(first, second)
    interval = test.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((test.pvalue, interval.low, interval.high), abs=1e-9)
    assert found.half == pytest.approx((interval.high - interval.low) / 2, abs=1e-9)


def test_one_pair_has_no_interval_and_equal_differences_no_test():
    assert difference([0.8], [0.7])[2:] == (None, None, None)
    assert math.isnan(difference([0.8], [0.7]).half)
    k = np.array([400, 500, 600])
    equal = difference((k + 5) / 656, k / 656)  # equal up to rounding
    assert equal.p is None
    assert equal.low == equal.high == pytest.approx(5 / 656)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.04, 0.09, 0.09, None])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
