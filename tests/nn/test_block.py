import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.fasternet import MLPBlock
from torch import nn

from patnet.nn import MIXERS, MLP, BatchNorm2d, PATBlock, PATResidualBlock, PConv

DD = {"dtype": torch.float64}


@settings(max_examples=20)
@given(
    dim=st.integers(2, 10),
    mlp_ratio=st.floats(0.6, 4),
    spatial_attn=st.sampled_from(["pat_sp", "none"]),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
)
def test_mlp_equals_the_equations(settled, equations, dim, mlp_ratio, spatial_attn, height, width):
    mlp = settled(MLP(dim, mlp_ratio, spatial_attn=spatial_attn, act_layer=nn.GELU, **DD))
    x = torch.randn(2, dim, height, width, **DD)
    hidden = F.conv2d(x, mlp.conv1.weight)
    assert hidden.shape[1] == int(dim * mlp_ratio)
    hidden = equations.batch_norm(hidden, mlp.norm)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), mlp.attn(F.conv2d(hidden, mlp.conv2.weight)))
    assert isinstance(mlp.attn, nn.Identity) == (spatial_attn == "none")


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
    for device, dtype in [("meta", torch.float32), ("cpu", torch.bfloat16)]:
        dd = {"device": device, "dtype": dtype}
        block = PATBlock(entry.build(8, num_heads=2, **dd), MLP(8, **dd)).eval()
        values = [value for value in block.state_dict().values() if value.is_floating_point()]
        assert {(value.device.type, value.dtype) for value in values} == {(device, dtype)}
        y = block(torch.randn(2, 8, 3, 4, **dd))
        assert (y.shape, y.device.type, y.dtype) == ((2, 8, 3, 4), device, dtype)


@pytest.mark.parametrize(("name", "kernel", "groups"), [("conv", 3, 1), ("dwconv", 3, 8), ("dwconv7", 7, 8)])
def test_plain_convolutions(settled, name, kernel, groups):
    mixer = settled(MIXERS[name].build(8, **DD))
    x = torch.randn(2, 8, 5, 4, **DD)
    assert mixer.weight.shape == (8, 8 // groups, kernel, kernel)
    assert mixer.bias is None
    torch.testing.assert_close(mixer(x), F.conv2d(x, mixer.weight, padding=kernel // 2, groups=groups))


@pytest.mark.parametrize("name", [name for name in MIXERS if name.startswith("pat_")])
def test_a_ratio_of_one_convolves_everything(settled, name):
    mixer = settled(MIXERS[name].build(8, partial_ratio=1, **DD))
    x = torch.randn(2, 8, 5, 4, **DD)
    torch.testing.assert_close(mixer(x), F.conv2d(x, mixer.conv.weight, padding=1))


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


def test_pconv_without_spatial_attention_is_fasternets_block(settled):
    theirs = settled(MLPBlock(16, 4, 2.0, 0.0, 0.0))
    ours = PATBlock(PConv(16), MLP(16, spatial_attn="none")).eval()
    state = theirs.state_dict()
    place = {"0": "conv1", "1": "norm", "3": "conv2"}
    ours.load_state_dict(
        {
            "mixer.conv.weight": state.pop("spatial_mixing.partial_conv3.weight"),
            **{f"mlp.{place[key.split('.')[1]]}.{key.split('.')[2]}": value for key, value in state.items()},
        }
    )
    x = torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x))


def test_another_norm_reaches_every_norm():
    class Own(nn.BatchNorm2d):
        pass

    block = PATBlock(MIXERS["pat_ch"].build(8, norm_layer=Own), MLP(8, norm_layer=Own))
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 5
    assert not any(isinstance(norm, BatchNorm2d) for norm in norms)


def test_mlp_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"mlp_ratio=0\.01 leaves no hidden channel for dim=8"):
        MLP(8, 0.01)
    with pytest.raises(ValueError, match=r"unknown spatial_attn 'pat_spp' \(did you mean 'pat_sp'\?\)"):
        MLP(8, spatial_attn="pat_spp")
