import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import EcaModule, SEModule

from patnet.nn import (
    CHANNEL_ATTENTIONS,
    GCT,
    SRM,
    GaussianChannelAttention,
    MeanChannelAttention,
    QuantileChannelAttention,
    spatial_mean_std,
)
from patnet.nn.channel_attention import spatial_quantiles

sides = st.integers(1, 6)
maps = {"batch": st.integers(1, 3), "dim": st.integers(1, 9), "height": sides, "width": sides}
DD = {"dtype": torch.float64}


@settings(max_examples=30)
@given(shift=st.floats(-100, 100), **maps)
def test_statistics_are_torchs_mean_and_unbiased_std(equations, shift, batch, dim, height, width):
    x = shift + torch.randn(batch, dim, height, width, **DD)
    torch.testing.assert_close(spatial_mean_std(x), equations.mean_std(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 1e3, 3e4])
def test_statistics_of_large_half_precision_maps_are_those_of_float32(dtype, level):
    x = (level + 1e3 * torch.randn(2, 4, 32, 32)).to(dtype)
    mean, std = spatial_mean_std(x)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, x.double().mean((2, 3)).float(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(std, x.double().std((2, 3)).float(), rtol=1e-4, atol=1e-2)


@settings(max_examples=30)
@given(parts=st.integers(2, 9), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), **maps)
def test_quantiles_are_torchs(parts, dtype, batch, dim, height, width):
    x = torch.randn(batch, dim, height, width).to(dtype)
    expected = torch.stack([x.double().flatten(2).quantile(i / parts, dim=2) for i in range(1, parts)], dim=2)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(spatial_quantiles(x, parts), expected.to(dtype), **tolerance)


@settings(max_examples=40)
@given(statistics=st.sampled_from(["gaussian", "mean", 2, 4, 7]), **maps)
def test_gates_come_from_the_statistics_of_all_channels(settled, equations, statistics, batch, dim, height, width):
    x = torch.randn(batch, dim, height, width, **DD)
    if statistics == "gaussian":
        attention, squeezed = GaussianChannelAttention(dim, **DD), equations.mean_std(x)
    elif statistics == "mean":
        attention, squeezed = MeanChannelAttention(dim, **DD), [x.mean((2, 3))]
    else:
        attention = QuantileChannelAttention(dim, statistics, **DD)
        squeezed = [x.flatten(2).quantile(i / statistics, dim=2) for i in range(1, statistics)]
    kernel = settled(attention).mix.weight[:, :, 0]  # (C, C, statistics)
    mixed = sum(statistic @ kernel[..., i].T for i, statistic in enumerate(squeezed))
    gate = equations.hard_sigmoid(equations.batch_norm(mixed[:, :, None, None], attention.norm))
    torch.testing.assert_close(attention(x), gate * x, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(**maps)
def test_srm_equals_the_equations(settled, equations, batch, dim, height, width):
    srm = settled(SRM(dim, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    mean, std = equations.mean_std(x)
    z = equations.batch_norm((srm.mix[:, 0] * mean + srm.mix[:, 1] * std)[:, :, None, None], srm.norm)
    torch.testing.assert_close(srm(x), x / (1 + torch.exp(-z)), rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(**maps)
def test_gct_equals_the_equations(settled, batch, dim, height, width):
    gct = settled(GCT(dim, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    s = gct.alpha * (x.pow(2).sum((2, 3)) + 1e-5).pow(0.5)
    normed = dim**0.5 * s / (s.pow(2).sum(1, keepdim=True) + dim * 1e-5).pow(0.5)
    torch.testing.assert_close(gct(x), x * (1 + torch.tanh(gct.gamma * normed + gct.beta))[:, :, None, None])


def test_squares_of_half_precision_do_not_overflow_in_gct(settled):
    gct = settled(GCT(4))
    x = 1e4 * torch.randn(2, 4, 16, 16).clamp(-3, 3)  # gates reach 2
    expected = gct(x)
    y = gct.half()(x.half())
    assert y.isfinite().all()
    assert (y.float() - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize(("name", "factor"), [("none", 1), ("gct", 1), ("srm", 0.5)])
def test_gates_at_the_start(name, factor):
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(CHANNEL_ATTENTIONS[name](5)(x), factor * x, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "theirs"), [("se", SEModule), ("eca", EcaModule)])
@pytest.mark.parametrize("dim", [1, 12, 96])
def test_se_and_eca_are_timms(settled, name, theirs, dim):
    ours, module = CHANNEL_ATTENTIONS[name](dim), settled(theirs(dim))
    ours.load_state_dict(module.state_dict())
    x = torch.randn(2, dim, 5, 4)
    assert torch.equal(ours(x), module(x))


def test_one_part_has_no_quantile():
    with pytest.raises(ValueError, match="parts=1 has no quantile between its parts: at least 2 are needed"):
        QuantileChannelAttention(8, 1)
