import pytest
import torch
import torch.nn.functional as F
from equations import batch_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet.nn import MIXERS, MLP, PATBlock, PATResidualBlock, PConv

DD = {"dtype": torch.float64}


@settings(max_examples=20)
@given(
    dim=st.integers(2, 10),
    mlp_ratio=st.floats(0.6, 4),
    spatial_attn=st.sampled_from(["pat_sp", "none"]),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
def test_mlp_equals_the_equations(settled, dim, mlp_ratio, spatial_attn, height, width):
    mlp = settled(MLP(dim, mlp_ratio, spatial_attn=spatial_attn, act_layer=nn.GELU, **DD))
    x = torch.randn(2, dim, height, width, **DD)
    hidden = batch_norm(F.conv2d(x, mlp.conv1.weight), mlp.norm)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), mlp.attn(F.conv2d(hidden, mlp.conv2.weight)))


@given(dim=st.integers(1, 2048), hidden=st.integers(1, 4096))
def test_a_ratio_of_widths_gives_that_hidden_width(dim, hidden):
    assert MLP(dim, hidden / dim, spatial_attn="none", device="meta").conv1.out_channels == hidden


@pytest.mark.parametrize("name", MIXERS)
def test_block_of_each_mixer(settled, name):
    entry = MIXERS[name]
    block = settled(entry.block(entry.build(8, num_heads=2, **DD), MLP(8, **DD)))
    x = torch.randn(2, 8, 3, 5, **DD)
    if name.endswith(("_sf", "_linear", "_lka", "_window")):  # the block of stage 4
        between = x + block.mixer(x)
        expected = between + block.mlp(between)
    else:
        expected = x + block.mlp(block.mixer(x))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("name", "kernel", "groups"), [("conv", 3, 1), ("dwconv", 3, 8), ("dwconv7", 7, 8)])
def test_plain_convolutions(name, kernel, groups):
    mixer = MIXERS[name].build(8, **DD)
    x = torch.randn(2, 8, 5, 4, **DD)
    assert mixer.weight.shape == (8, 8 // groups, kernel, kernel)
    torch.testing.assert_close(mixer(x), F.conv2d(x, mixer.weight, padding=kernel // 2, groups=groups))


@pytest.mark.parametrize("block_class", [PATBlock, PATResidualBlock])
def test_drop_path_drops_the_mlp_of_some_images_in_training(settled, block_class):
    block = settled(block_class(PConv(8), MLP(8, spatial_attn="none"), drop_path=0.5))
    x = torch.randn(64, 8, 3, 3)
    with_mlp, shortcut = block(x), x + block.mixer(x) if block_class is PATResidualBlock else x
    block.drop_path.train()
    y = block(x)
    dropped = (y == shortcut).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    torch.testing.assert_close(y[~dropped] - shortcut[~dropped], 2 * (with_mlp - shortcut)[~dropped])
