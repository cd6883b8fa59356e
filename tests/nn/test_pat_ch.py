import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import CHANNEL_ATTENTIONS, Full_ch, PAT_ch

sides = st.integers(1, 6)


def batch_norm(x, norm):
    mean, var, weight, bias = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


@settings(max_examples=30)
@given(
    convolved=st.integers(1, 5),
    untouched=st.integers(1, 12),
    batch=st.integers(1, 3),
    height=sides,
    width=sides,
    channel_attn=st.sampled_from(["gaussian", "none"]),
)
def test_equals_the_equations(settled, convolved, untouched, batch, height, width, channel_attn):
    dim = convolved + untouched
    block = settled(PAT_ch(dim, convolved / dim, channel_attn=channel_attn, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    x1, x2 = x[:, :convolved], x[:, convolved:]

    gate = torch.ones(batch, untouched, 1, 1, dtype=torch.float64)
    if channel_attn == "gaussian":
        mu = x2.mean((2, 3))
        sigma = x2.std((2, 3)) if height * width > 1 else torch.zeros_like(mu)
        kernel = block.attn.mix.weight
        mixed = torch.einsum("oi,ni->no", kernel[:, :, 0, 0], mu) + torch.einsum("oi,ni->no", kernel[:, :, 0, 1], sigma)
        gate = (batch_norm(mixed[:, :, None, None], block.attn.norm) / 6 + 0.5).clamp(0, 1)
    y2 = batch_norm(gate * x2, block.norm)
    y1 = F.conv2d(x1, block.conv.weight, padding=1)
    torch.testing.assert_close(block(x), torch.cat((y1, y2), dim=1), rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(
    convolved=st.integers(1, 5),
    untouched=st.integers(1, 12),
    height=sides,
    width=sides,
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
)
def test_the_papers_norm_is_of_all_channels(settled, convolved, untouched, height, width, channel_attn):
    dim = convolved + untouched
    options = {"channel_attn": channel_attn, "norm_position": "all", "dtype": torch.float64}
    block = settled(PAT_ch(dim, convolved / dim, **options))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    y1 = F.conv2d(x[:, :convolved], block.conv.weight, padding=1)
    y2 = block.attn(x[:, convolved:])
    torch.testing.assert_close(block(x), batch_norm(torch.cat((y1, y2), dim=1), block.norm_all))


@settings(max_examples=15)
@given(dim=st.integers(1, 12), height=sides, width=sides, channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)))
def test_full_convolves_and_attends_to_all_channels(settled, dim, height, width, channel_attn):
    block = settled(Full_ch(dim, channel_attn=channel_attn, dtype=torch.float64))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    attended = block.attn(F.conv2d(x, block.conv.weight, padding=1))
    torch.testing.assert_close(block(x), batch_norm(attended, block.norm))


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (1, 3)])
def test_trains_on_one_picture(size):
    block = PAT_ch(8).train()
    before = block.attn.norm.running_mean.clone()
    x = torch.randn(1, 8, *size, requires_grad=True)
    block(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert torch.equal(block.attn.norm.running_mean, before)  # one value per channel has no variance
    assert block.norm.num_batches_tracked == (size != (1, 1))


@pytest.mark.parametrize("x", [torch.zeros(2, 8, 3, 3), torch.full((2, 8, 3, 3), -4.0), torch.randn(2, 8, 1, 1)])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_finite_on_flat_maps(x, training):
    block = PAT_ch(8).train(training)
    x = x.clone().requires_grad_()
    block(x).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *block.parameters()))


def test_gradcheck():
    block = PAT_ch(4, dtype=torch.float64).eval()
    assert torch.autograd.gradcheck(block, (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("how", ["autocast", "bfloat16", "half"])
def test_half_precision_with_large_activations(settled, how):
    block = settled(PAT_ch(16))
    x = 1e3 * (1 + 0.5 * torch.randn(2, 16, 16, 16))
    expected = block(x)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
    else:
        dtype = getattr(torch, how)
        y = block.to(dtype)(x.to(dtype))
        block.float()
    assert y.isfinite().all()
    assert (y.float() - expected).norm() / expected.norm() < (0.003 if how == "half" else 0.02)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="to attend to"):
        PAT_ch(8, 1.0)
    with pytest.raises(ValueError, match="to convolve"):
        PAT_ch(2, 0.25)
    with pytest.raises(ValueError, match=r"unknown channel_attn 'gaussan' \(did you mean 'gaussian'\?\)"):
        PAT_ch(8, channel_attn="gaussan")
    with pytest.raises(ValueError, match=r"unknown norm_position 'al' \(did you mean 'all'\?\)"):
        PAT_ch(8, norm_position="al")
    with pytest.raises(ValueError, match=r"unknown channel_attn 'see' \(did you mean 'se'\?\)"):
        Full_ch(8, channel_attn="see")
