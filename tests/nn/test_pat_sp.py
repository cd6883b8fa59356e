import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import SPATIAL_ATTENTIONS, PAT_sp

sides = st.integers(1, 6)


def batch_norm(x, norm):
    mean, var, weight, bias = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


@settings(max_examples=30)
@given(gated=st.integers(1, 8), mixed=st.integers(1, 8), batch=st.integers(1, 3), height=sides, width=sides)
def test_equals_the_equations(settled, gated, mixed, batch, height, width):
    dim = gated + mixed
    block = settled(PAT_sp(dim, gated / dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    x1, x2 = x[:, :gated], x[:, gated:]
    s = (torch.einsum("i,nihw->nhw", block.gate_conv.weight[0, :, 0, 0], x1)[:, None] / 6 + 0.5).clamp(0, 1)
    y1 = batch_norm(s * x1, block.gate_norm)
    y2 = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], batch_norm(x2, block.norm))
    torch.testing.assert_close(block(x), torch.cat((y1, y2), dim=1))


@pytest.mark.parametrize("size", [(4, 4), (1, 1)])
def test_trains_on_one_picture(size):
    block = PAT_sp(8).train()
    x = torch.randn(1, 8, *size, requires_grad=True)
    block(x).square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (x, *block.parameters()))
    assert block.norm.num_batches_tracked == (size != (1, 1))


def test_gradcheck():
    block = PAT_sp(4, dtype=torch.float64).eval()
    assert torch.autograd.gradcheck(block, (torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True),))


def test_none_passes_every_channel_through():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(SPATIAL_ATTENTIONS["none"](5)(x), x)


def test_refuses_a_channel_too_few():
    with pytest.raises(ValueError, match="leaves none of 1 channels"):
        PAT_sp(1)
