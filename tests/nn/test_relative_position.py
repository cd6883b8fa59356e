import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from patnet.nn import RelativePosition
from patnet.nn.relative_position import IndexCache, index_cache, piecewise_index, position_buckets

DEFAULT = (20.0, 40, 160.0)
CPU = torch.device("cpu")


def g(d, alpha, beta, gamma):
    """Equation 18 of iRPE, in Python's double precision."""
    if abs(d) <= alpha:
        return round(d)
    far = round(alpha + math.log(abs(d) / alpha) / math.log(gamma / alpha) * (beta - alpha))
    return int(math.copysign(min(beta, far), d))


def bucket(i, j, width, method, alpha, beta, gamma):
    dr, dc = i // width - j // width, i % width - j % width
    if method == "product":
        return (g(dr, alpha, beta, gamma) + beta) * (2 * beta + 1) + g(dc, alpha, beta, gamma) + beta
    return g(round(math.sqrt(dr**2 + dc**2)), alpha, beta, gamma) + beta


def test_index_of_every_offset_of_a_large_map():
    offsets = torch.arange(-2000, 2001)
    assert piecewise_index(offsets.float(), *DEFAULT).tolist() == [g(d, *DEFAULT) for d in offsets.tolist()]


@settings(max_examples=25)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 30),
    method=st.sampled_from(["euclidean", "product"]),
    thresholds=st.sampled_from([DEFAULT, (3.0, 7, 17.0), (1.0, 5, 11.0), (2.0, 3, 5.0)]),
)
def test_buckets_equal_the_double_loop(height, width, method, thresholds):
    buckets = position_buckets(height, width, method == "product", *thresholds, CPU)
    area = range(height * width)
    assert buckets.tolist() == [[bucket(i, j, width, method, *thresholds) for j in area] for i in area]


@settings(max_examples=25)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    method=st.sampled_from(["euclidean", "product"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_term_equals_the_equations(settled, heads, head_dim, height, width, method, mode):
    position = settled(RelativePosition(heads, head_dim, method=method, mode=mode, dtype=torch.float64))
    area = height * width
    q = torch.randn(2, heads, area, head_dim, dtype=torch.float64)
    term = position(q, height, width).expand(2, heads, area, area)
    for h in range(heads):
        for i in range(area):
            for j in range(area):
                b = bucket(i, j, width, method, *DEFAULT)
                expected = position.table[h, b].expand(2) if mode == "bias" else q[:, h, i] @ position.table[h, :, b]
                torch.testing.assert_close(term[:, h, i, j], expected)


@pytest.mark.parametrize("side", [56, 14, 7, 2])  # stages 1, 3 and 4 at 224 px, and stage 4 at 64 px
@pytest.mark.parametrize("method", ["euclidean", "product"])
def test_the_cost_is_that_of_the_equations(side, method):
    heads, head_dim, area = 2, 3, side * side
    q = torch.empty(2, heads, area, head_dim, device="meta")

    def multiplications(mode):
        position = RelativePosition(heads, head_dim, method=method, mode=mode, device="meta")
        with FlopCounterMode(display=False) as counter:
            assert position(q, side, side).shape[1:] == (heads, area, area)
        return counter.get_total_flops() // 2

    assert multiplications("bias") == 0  # a look-up
    columns = (2 * side - 1) ** 2 if method == "product" else 81
    assert multiplications("contextual") == 2 * heads * area * head_dim * columns


def test_inference_first_and_training_after(settled):
    index_cache.entries.clear()
    position = settled(RelativePosition(2, 3, mode="contextual"))
    q = torch.randn(1, 2, 20, 3)
    with torch.inference_mode():
        first = position(q, 4, 5)
    position.train()(q.requires_grad_(), 4, 5).square().sum().backward()
    assert position.table.grad.any()
    torch.testing.assert_close(position(q, 4, 5), first)


@pytest.mark.parametrize("fake_input", [False, True])
def test_fake_tensors_first_and_real_ones_after(settled, fake_input):
    index_cache.entries.clear()
    position = settled(RelativePosition(2, 3))
    q = torch.randn(1, 2, 20, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert position(mode.from_tensor(q) if fake_input else q, 4, 5).shape == (1, 2, 20, 20)
    real = position(q, 4, 5)
    assert type(real) is torch.Tensor
    assert real.any()


@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_transforms_of_functions_leave_nothing_behind(settled, mode):
    position = settled(RelativePosition(2, 3, mode=mode, alpha=2, beta=3, gamma=5))
    table, q = position.table.detach(), torch.randn(1, 2, 6, 3)

    def loss(table, q):
        return torch.func.functional_call(position, {"table": table}, (q, 2, 3)).square().sum()

    gradient = torch.func.grad(loss)
    ways = [
        lambda: torch.func.hessian(loss)(table, q),
        lambda: gradient(table, q),
        lambda: torch.func.jvp(lambda t: loss(t, q), (table,), (table,))[1],
        lambda: torch.func.vmap(gradient, in_dims=(None, 0))(table, torch.stack((q, 2 * q))),
        lambda: torch.func.functionalize(gradient)(table, q),
        lambda: torch.autograd.grad(loss(position.table, q), position.table)[0],
    ]
    alone = []
    for way in ways:
        index_cache.entries.clear()
        alone.append(way())
    for first in ways:
        for then, expected in zip(ways, alone, strict=True):
            index_cache.entries.clear()
            first()
            torch.testing.assert_close(then(), expected)


def test_the_cache_is_bounded_and_keeps_the_last_used():
    cache = IndexCache(size=3, max_bytes=10_000)
    kept = cache(position_buckets, 1, 1, False, *DEFAULT, CPU)
    for width in range(2, 9):
        cache(position_buckets, 1, width, False, *DEFAULT, CPU)
        assert cache(position_buckets, 1, 1, False, *DEFAULT, CPU) is kept
        assert len(cache.entries) <= 3
    cache(position_buckets, 6, 6, False, *DEFAULT, CPU)  # 36 * 36 indices of 8 bytes: more than may be kept
    assert sum(buckets.nbytes for buckets in cache.entries.values()) <= 10_000


def test_thresholds_set_the_size_of_the_table_or_are_refused():
    assert RelativePosition(2, 3, alpha=3, beta=7, gamma=17).table.shape == (2, 15)
    assert RelativePosition(2, 3, method="product", alpha=3, beta=7, gamma=17).table.shape == (2, 225)
    for wrong in [{"alpha": 0}, {"gamma": 20}, {"beta": 10}]:
        with pytest.raises(ValueError, match="must hold"):
            RelativePosition(2, 3, **wrong)


@pytest.mark.parametrize(
    ("method", "mode", "dynamic"),
    [("euclidean", "bias", None), ("euclidean", "contextual", True), ("product", "contextual", None)],
)
def test_scripted_and_compiled_follow_the_size(settled, method, mode, dynamic):
    position = settled(RelativePosition(2, 3, method=method, mode=mode))
    torch._dynamo.reset()
    compiled = torch.compile(position, backend="eager", fullgraph=True, dynamic=dynamic)
    scripted = torch.jit.script(position)
    for height, width in [(3, 4), (4, 3), (1, 1)]:
        q = torch.randn(1, 2, height * width, 3)
        expected = position(q, height, width)
        for other in (scripted, compiled):
            torch.testing.assert_close(other(q, height, width), expected)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown position method 'euclid'.*choose from euclidean, product"):
        RelativePosition(2, 3, method="euclid")
    with pytest.raises(ValueError, match=r"unknown position mode 'biased'.*choose from bias, contextual"):
        RelativePosition(2, 3, mode="biased")
