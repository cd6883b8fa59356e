import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.cbam import SpatialAttn
from torch import nn

from patnet.nn import MLP, SPATIAL_ATTENTIONS, Full_sp, PAT_cbam

sides = st.integers(1, 6)


def batch_norm(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@settings(max_examples=15)
@given(dim=st.integers(1, 8), batch=st.integers(1, 3), height=sides, width=sides)
def test_full_sp_gates_all_channels_with_one_map(settled, dim, batch, height, width):
    block = settled(Full_sp(dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    s = (torch.einsum("i,nihw->nhw", block.gate_conv.weight[0, :, 0, 0], x)[:, None] / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(block(x), batch_norm(s * x, block.norm))


@settings(max_examples=15)
@given(gated=st.integers(1, 8), mixed=st.integers(1, 8), batch=st.integers(1, 3), height=sides, width=sides)
def test_cbam_gates_the_first_half_with_timms_map(settled, gated, mixed, batch, height, width):
    dim = gated + mixed
    block = settled(PAT_cbam(dim, gated / dim, dtype=torch.float64))
    theirs = SpatialAttn(dtype=torch.float64).eval()
    theirs.load_state_dict(block.attn.state_dict())
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    y1 = batch_norm(theirs(x[:, :gated]), block.gate_norm)
    y2 = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], batch_norm(x[:, gated:], block.norm))
    torch.testing.assert_close(block(x), torch.cat((y1, y2), dim=1))


@pytest.mark.parametrize("name", SPATIAL_ATTENTIONS)
def test_each_stands_in_the_mlp_and_takes_another_norm(name):
    class Own(nn.BatchNorm2d):
        pass

    mlp = MLP(8, spatial_attn=name, norm_layer=Own)
    norms = [module for module in mlp.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, Own) for norm in norms)
    assert mlp(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
