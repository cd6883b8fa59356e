import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import CHANNEL_ATTENTIONS, GaussianChannelAttention
from patnet.nn.channel_attention import spatial_mean_std

sides = st.integers(1, 6)


@settings(max_examples=30)
@given(batch=st.integers(1, 3), dim=st.integers(1, 9), height=sides, width=sides, shift=st.floats(-100, 100))
def test_statistics_are_torchs_mean_and_unbiased_deviation(batch, dim, height, width, shift):
    x = shift + torch.randn(batch, dim, height, width, dtype=torch.float64)
    mean, std = spatial_mean_std(x)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    if height * width > 1:
        torch.testing.assert_close(std, x.std((2, 3)), rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(std, torch.zeros(batch, dim, dtype=torch.float64), rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 1e3, 3e4])
def test_statistics_of_large_half_precision_maps_are_those_of_float32(dtype, level):
    x = (level + 1e3 * torch.randn(2, 4, 32, 32)).to(dtype)
    mean, std = spatial_mean_std(x)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((2, 3)).float(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(std, x.double().std((2, 3)).float(), rtol=1e-4, atol=1e-2)


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
