import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.cbam import SpatialAttn
from torch import nn

from patnet.nn import MLP, SPATIAL_ATTENTIONS, Full_sp, PAT_cbam, PAT_sp

sides = st.integers(1, 6)
DD = {"dtype": torch.float64}


@settings(max_examples=40)
@given(
    kind=st.sampled_from([PAT_sp, Full_sp, PAT_cbam]),
    gated=st.integers(1, 8),
    mixed=st.integers(1, 8),
    batch=st.integers(1, 3),
    height=sides,
    width=sides,
)
def test_equals_the_equations(settled, equations, kind, gated, mixed, batch, height, width):
    dim = gated if kind is Full_sp else gated + mixed
    block = settled(Full_sp(dim, **DD) if kind is Full_sp else kind(dim, gated / dim, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    x1, x2 = x[:, :gated], x[:, gated:]
    if kind is PAT_cbam:  # the map is timm's
        theirs = SpatialAttn(**DD).eval()
        theirs.load_state_dict(block.attn.state_dict())
        y1 = theirs(x1)
    else:
        y1 = x1 * equations.hard_sigmoid(torch.einsum("i,nihw->nhw", block.gate_conv.weight[0, :, 0, 0], x1)[:, None])
    if kind is Full_sp:
        y = equations.batch_norm(y1, block.norm)
    else:
        y2 = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], equations.batch_norm(x2, block.norm))
        y = torch.cat((equations.batch_norm(y1, block.gate_norm), y2), dim=1)
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("name", SPATIAL_ATTENTIONS)
def test_each_fits_in_the_mlp_and_takes_another_norm(name):
    class Own(nn.BatchNorm2d):
        pass

    mlp = MLP(8, spatial_attn=name, norm_layer=Own)
    norms = [module for module in mlp.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, Own) for norm in norms)
    assert mlp(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


def test_none_passes_every_channel_through_and_one_channel_is_refused():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(SPATIAL_ATTENTIONS["none"](5)(x), x)
    with pytest.raises(ValueError, match="leaves none of 1 channels"):
        PAT_sp(1)
