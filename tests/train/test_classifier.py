import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from patnet.train.classifier import warmup_cosine


@given(steps=st.integers(2, 1000), share=st.floats(0, 0.9), lr=st.floats(1e-4, 1), min_lr=st.floats(1e-8, 1e-5))
def test_the_rate_rises_once_and_then_falls(steps, share, lr, min_lr):
    warmup = int(steps * share)
    rates = [warmup_cosine(step, steps, warmup, lr, min_lr) for step in range(steps + 1)]
    assert math.isclose(rates[warmup], lr, rel_tol=1e-6)
    assert math.isclose(rates[-1], min_lr, rel_tol=1e-6)
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a > b for a, b in pairwise(rates[warmup:]))
