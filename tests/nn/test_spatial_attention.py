import pytest
import torch
from equations import batch_norm, hard_sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.cbam import SpatialAttn

from patnet.nn import SPATIAL_ATTENTIONS, Full_sp, PAT_cbam, PAT_sp

sides = st.integers(1, 6)
DD = {"dtype": torch.float64}


@pytest.mark.parametrize("kind", [PAT_sp, Full_sp, PAT_cbam])
@settings(max_examples=15)
@given(gated=st.integers(1, 8), mixed=st.integers(1, 8), batch=st.integers(1, 3), height=sides, width=sides)
def test_equals_the_equations(settled, kind, gated, mixed, batch, height, width):
    dim = gated if kind is Full_sp else gated + mixed
    block = settled(Full_sp(dim, **DD) if kind is Full_sp else kind(dim, gated / dim, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    x1, x2 = x[:, :gated], x[:, gated:]
    if kind is PAT_cbam:  # the map is timm's
        theirs = SpatialAttn(**DD).eval()
        theirs.load_state_dict(block.attn.state_dict())
        y1 = theirs(x1)
    else:
        y1 = x1 * hard_sigmoid(torch.einsum("i,nihw->nhw", block.gate_conv.weight[0, :, 0, 0], x1)[:, None])
    if kind is Full_sp:
        y = batch_norm(y1, block.norm)
    else:
        y2 = torch.einsum("oi,nihw->nohw", block.conv.weight[:, :, 0, 0], batch_norm(x2, block.norm))
        y = torch.cat((batch_norm(y1, block.gate_norm), y2), dim=1)
    torch.testing.assert_close(block(x), y)


def test_none_passes_every_channel_through():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(SPATIAL_ATTENTIONS["none"](5)(x), x)
