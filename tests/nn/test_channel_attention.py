import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import EcaModule, SEModule

from patnet.nn import (
    CHANNEL_ATTENTIONS,
    GaussianChannelAttention,
    MeanChannelAttention,
    QuantileChannelAttention,
)

sides = st.integers(1, 6)


@settings(max_examples=15)
@given(batch=st.integers(1, 3), dim=st.integers(1, 9), height=sides, width=sides)
def test_gates_come_from_both_statistics_of_all_channels(settled, batch, dim, height, width):
    attention = settled(GaussianChannelAttention(dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    mean = x.mean((2, 3))
    std = x.std((2, 3)) if height * width > 1 else torch.zeros_like(mean)
    kernel = attention.mix.weight[:, :, 0]  # (C, C, 2)
    mixed = mean @ kernel[..., 0].T + std @ kernel[..., 1].T
    norm = attention.norm
    normed = (mixed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    gate = (normed / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(attention(x), gate[:, :, None, None] * x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 7.3), torch.randn(2, 3, 1, 1)])
def test_gradient_is_finite_where_there_is_no_deviation(x):
    x = x.clone().requires_grad_()
    attention = GaussianChannelAttention(3)
    attention(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


def test_gradcheck():
    attention = GaussianChannelAttention(3, dtype=torch.float64).eval()
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))


def test_none_passes_every_channel_through():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(CHANNEL_ATTENTIONS["none"](5)(x), x)


@settings(max_examples=20)
@given(
    parts=st.sampled_from([None, 2, 4, 7]),
    batch=st.integers(1, 3),
    dim=st.integers(1, 9),
    height=sides,
    width=sides,
)
def test_other_statistics_are_mixed_alike(settled, parts, batch, dim, height, width):
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    if parts is None:
        attention = settled(MeanChannelAttention(dim, dtype=torch.float64))
        squeezed = [x.mean((2, 3))]
    else:
        attention = settled(QuantileChannelAttention(dim, parts, dtype=torch.float64))
        squeezed = [x.flatten(2).quantile(i / parts, dim=2) for i in range(1, parts)]
    kernel = attention.mix.weight
    mixed = sum(statistic @ kernel[:, :, 0, i].T for i, statistic in enumerate(squeezed))
    norm = attention.norm
    normed = (mixed - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    gate = (normed / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(attention(x), gate[:, :, None, None] * x)


@pytest.mark.parametrize(("name", "theirs"), [("se", SEModule), ("eca", EcaModule)])
@pytest.mark.parametrize("dim", [1, 12, 96])
def test_what_timm_has_is_timms(settled, name, theirs, dim):
    ours, module = CHANNEL_ATTENTIONS[name](dim), settled(theirs(dim))
    ours.load_state_dict(module.state_dict())
    x = torch.randn(2, dim, 5, 4)
    assert torch.equal(ours(x), module(x))


def test_one_part_has_no_quantile():
    with pytest.raises(ValueError, match="parts=1 has no quantile between its parts: at least 2 are needed"):
        QuantileChannelAttention(8, 1)
