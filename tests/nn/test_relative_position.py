import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from equations import piecewise_index
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from patnet.nn import RelativePosition
from patnet.nn import relative_position as module

each_mode = pytest.mark.parametrize("mode", ["bias", "contextual"])
each_method = pytest.mark.parametrize("method", ["euclidean", "product"])


def test_index_of_every_offset_of_a_large_map():
    offsets = torch.arange(-2000, 2001)
    expected = [piecewise_index(offset, 20.0, 40, 160.0) for offset in offsets.tolist()]
    assert module.piecewise_index(offsets.float(), 20.0, 40, 160.0).tolist() == expected


def bucket(i, j, width, product, alpha, beta, gamma):
    rows, cols = i // width - j // width, i % width - j % width
    if not product:
        return piecewise_index(round(math.hypot(rows, cols)), alpha, beta, gamma) + beta
    row, col = (piecewise_index(offset, alpha, beta, gamma) + beta for offset in (rows, cols))
    return row * (2 * beta + 1) + col


@each_method
@each_mode
@settings(max_examples=10)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 25),
    thresholds=st.sampled_from([(20.0, 40, 160.0), (3.0, 7, 17.0), (1.0, 5, 11.0), (2.0, 3, 5.0)]),
)
def test_equals_the_equations(settled, method, mode, heads, head_dim, height, width, thresholds):
    options = dict(zip(("alpha", "beta", "gamma"), thresholds, strict=True))
    position = settled(RelativePosition(heads, head_dim, method=method, mode=mode, **options, dtype=torch.float64))
    area = height * width
    q = torch.randn(2, heads, area, head_dim, dtype=torch.float64)
    product = method == "product"
    buckets = torch.tensor([[bucket(i, j, width, product, *thresholds) for j in range(area)] for i in range(area)])
    terms = position.table[..., buckets]  # (heads, area, area), or (heads, head_dim, area, area)
    expected = terms[None] if mode == "bias" else torch.einsum("nhid,hdij->nhij", q, terms)
    torch.testing.assert_close(position(q, height, width), expected)


@each_method
@pytest.mark.parametrize("side", [56, 14, 2])  # stages 1 and 3 at 224 px, and stage 4 at 64 px
def test_the_cost_is_that_of_the_equations(side, method):
    heads, head_dim, area = 2, 3, side * side
    q = torch.empty(2, heads, area, head_dim, device="meta")
    columns = (2 * side - 1) ** 2 if method == "product" else 81
    for mode, multiplications in (("bias", 0), ("contextual", 2 * heads * area * head_dim * columns)):
        position = RelativePosition(heads, head_dim, method=method, mode=mode, device="meta")
        with FlopCounterMode(display=False) as counter:
            assert position(q, side, side).shape[1:] == (heads, area, area)
        assert counter.get_total_flops() // 2 == multiplications


@each_mode
def test_what_was_computed_first_changes_nothing_after(settled, mode):
    position = settled(RelativePosition(2, 3, mode=mode, alpha=2, beta=3, gamma=5))
    table, q = position.table.detach(), torch.randn(1, 2, 6, 3)

    def loss(table, q):
        return torch.func.functional_call(position, {"table": table}, (q, 2, 3)).square().sum()

    def with_fake_tensors(fake_input):
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            return list(position(fake.from_tensor(q) if fake_input else q, 2, 3).shape)

    gradient = torch.func.grad(loss)
    ways = [
        lambda: torch.inference_mode()(position)(q, 2, 3),
        lambda: torch.autograd.grad(loss(position.table, q), position.table)[0],
        lambda: with_fake_tensors(False),
        lambda: with_fake_tensors(True),
        lambda: torch.func.hessian(loss)(table, q),
        lambda: gradient(table, q),
        lambda: torch.func.jvp(lambda t: loss(t, q), (table,), (table,))[1],
        lambda: torch.func.vmap(gradient, in_dims=(None, 0))(table, torch.stack((q, 2 * q))),
        lambda: torch.func.functionalize(gradient)(table, q),
    ]
    alone = []
    for way in ways:
        module.index_cache.entries.clear()
        alone.append(way())
    for first in ways:
        for then, expected in zip(ways, alone, strict=True):
            module.index_cache.entries.clear()
            first()
            torch.testing.assert_close(then(), expected)


def test_the_cache_is_bounded_and_keeps_the_last_used():
    cache = module.IndexCache(size=3, max_bytes=10_000)

    def indices(side):
        return cache(module.pair_offsets, side, side, torch.device("cpu"))

    kept = indices(1)
    for side in (2, 3, 4, 5, 6):  # those of 6x6 positions, 36 * 36 of 8 bytes, are more than may be kept
        indices(side)
        assert len(cache.entries) <= 3
        assert sum(buckets.nbytes for buckets in cache.entries.values()) <= 10_000
        assert side == 6 or indices(1) is kept


def test_the_cache_serves_several_threads():
    cache, interval = module.IndexCache(size=3, max_bytes=10_000), sys.getswitchinterval()

    def work(start):
        for i in range(start, start + 3000):
            assert cache(torch.zeros, i % 7).shape == (i % 7,)

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))  # raises what a thread raised
    finally:
        sys.setswitchinterval(interval)
    assert len(cache.entries) == 3


def test_thresholds_set_the_size_of_the_table():
    for method, size in (("euclidean", 15), ("product", 225)):
        assert RelativePosition(2, 3, method=method, alpha=3, beta=7, gamma=17).table.shape == (2, size)
