import pytest
import torch
from equations import batch_norm, hard_sigmoid, mean_std
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import EcaModule, SEModule

from patnet.nn import CHANNEL_ATTENTIONS, GCT, QuantileChannelAttention, spatial_mean_std

DD = {"dtype": torch.float64}


def expected_gate(name, attention, x):
    """The gates of `x`, `(N, C, 1, 1)`; the name of `QuantileChannelAttention` is the number of its parts."""
    mean, std = mean_std(x)
    if name == "gct":
        size = attention.alpha * (x.pow(2).sum((2, 3)) + 1e-5).pow(0.5)
        relative = x.shape[1] ** 0.5 * size / (size.pow(2).sum(1, keepdim=True) + x.shape[1] * 1e-5).pow(0.5)
        return (1 + torch.tanh(attention.gamma * relative + attention.beta))[:, :, None, None]
    if name == "srm":
        mixed = attention.mix[:, 0] * mean + attention.mix[:, 1] * std
        return 1 / (1 + torch.exp(-batch_norm(mixed[:, :, None, None], attention.norm)))
    statistics = {"gaussian": [mean, std], "mean": [mean]}.get(name)
    if statistics is None:
        statistics = [x.flatten(2).quantile(i / name, dim=2) for i in range(1, name)]
    kernel = attention.mix.weight[:, :, 0]  # (C, C, statistics)
    mixed = sum(statistic @ kernel[..., i].T for i, statistic in enumerate(statistics))
    return hard_sigmoid(batch_norm(mixed[:, :, None, None], attention.norm))


@pytest.mark.parametrize("name", ["gaussian", "mean", 2, 4, 7, "srm", "gct"])
@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    dim=st.integers(1, 9),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
)
def test_equals_the_equations(settled, name, batch, dim, height, width, shift):
    parts = isinstance(name, int)
    attention = settled(QuantileChannelAttention(dim, name, **DD) if parts else CHANNEL_ATTENTIONS[name](dim, **DD))
    x = shift + torch.randn(batch, dim, height, width, **DD)
    torch.testing.assert_close(attention(x), expected_gate(name, attention, x) * x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 3e4])
def test_statistics_of_large_half_precision_maps_are_those_of_float32(dtype, level):
    x = (level + 1e3 * torch.randn(2, 4, 32, 32)).to(dtype)
    found, expected = spatial_mean_std(x), mean_std(x.double())
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other.float(), rtol=1e-4, atol=1e-2)


def test_squares_of_half_precision_do_not_overflow_in_gct(settled):
    gct = settled(GCT(4))
    x = 1e4 * torch.randn(2, 4, 16, 16).clamp(-3, 3)  # gates reach 2
    expected = gct(x)
    assert (gct.half()(x.half()).float() - expected).norm() / expected.norm() < 0.01


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
