import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import reparameterize_model
from torch import nn

from patnet import PATNet, fuse
from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, MLP, SPATIAL_ATTENTIONS, PAT_ch, PAT_sf

DOUBLE = {"dtype": torch.float64}


def relative_error(value, expected):
    return ((value - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def trained_like(name, **kwargs):
    """A network with its own start values, and norm statistics as after training: not 0 and 1."""
    model = timm.create_model(name, num_classes=10, **kwargs)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model.eval()


def norms_in(module):
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("mixer", MIXERS)
@settings(max_examples=5)
@given(
    dim=st.sampled_from([8, 16]),
    ratio=st.sampled_from([0.25, 0.5, 1]),
    mlp_ratio=st.sampled_from([1.0, 2.5]),
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
    spatial_attn=st.sampled_from(list(SPATIAL_ATTENTIONS)),
    act=st.sampled_from(["gelu", "relu"]),
    position=st.sampled_from(["euclidean", "product", "none"]),
    norms=st.sampled_from([("untouched", "before"), ("all", "after")]),
    other=st.sampled_from(["pat_ch", "full_ch", "pat_sf"]),
)
def test_a_fused_network_is_the_same_network(
    settled, mixer, dim, ratio, mlp_ratio, channel_attn, spatial_attn, act, position, norms, other
):
    model = PATNet(
        embed_dim=dim,
        depths=(1, 1),
        mixers=(mixer, other),
        num_heads=2,
        partial_ratio=ratio,
        mlp_ratio=mlp_ratio,
        channel_attn=channel_attn,
        spatial_attn=spatial_attn,
        position_method=position,
        ch_norm_position=norms[0],
        sf_norm_position=norms[1],
        window_size=3,
        act_layer=act,
        num_classes=5,
        feature_dim=16,
        drop_path_rate=0.2,
        drop_rate=0.1,
        **DOUBLE,  # random weights amplify rounding errors of float32
    )
    before = copy.deepcopy(settled(model).state_dict())
    fused = fuse(model.train())
    model.eval()
    x = torch.randn(2, 3, 32, 48, **DOUBLE)
    with torch.no_grad():
        expected = model(x)
        for other_form in (fused, fuse(fused), reparameterize_model(model)):
            assert relative_error(other_form(x), expected) <= 1e-9
    assert norms_in(fused) == []
    assert not any(isinstance(part, nn.Dropout) and part.p > 0 for part in fused.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


LARGE = [pytest.param(variant, marks=pytest.mark.slow) for variant in ("m", "l")]


@pytest.mark.parametrize("variant", ["t0", "t1", "t2", "s", *LARGE])
def test_every_variant(variant):
    model = trained_like(f"patnet_{variant}")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fused = fuse(model)
        error = relative_error(fused(x), expected)
        print(f"patnet_{variant}: relative error {error:.1e}")
        assert error <= 5e-6
        in_bfloat16, unfused = (
            relative_error(network.bfloat16()(x.bfloat16()).float(), expected) for network in (fused, model)
        )
        print(f"patnet_{variant}: relative error in bfloat16 {in_bfloat16:.1e}, unfused {unfused:.1e}")
        # The 8 bits of mantissa limit a network this deep; fusing must not add to that.
        assert in_bfloat16 <= max(1e-2, 1.5 * unfused)


BLOCKS = {
    **{name: entry.build for name, entry in MIXERS.items()},
    **{f"channel {name}": entry for name, entry in CHANNEL_ATTENTIONS.items()},
    **{f"spatial {name}": entry for name, entry in SPATIAL_ATTENTIONS.items()},
    **{f"MLP {name}": lambda dim, name=name: MLP(dim, spatial_attn=name) for name in SPATIAL_ATTENTIONS},
    "PAT_ch all": lambda dim: PAT_ch(dim, ch_norm_position="all"),
    "PAT_sf after": lambda dim: PAT_sf(dim, num_heads=3, sf_norm_position="after"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_single_blocks_and_inside_another_network(settled, name):
    block = settled(BLOCKS[name](24))
    x = torch.randn(2, 24, 5, 7)
    network = nn.Sequential(nn.Conv2d(24, 24, 1), block, nn.BatchNorm2d(24)).train()
    with torch.no_grad():
        for module in (block, network):
            fused = fuse(module)
            assert not fused.training
            assert relative_error(fused(x), module.eval()(x)) <= 1e-5
    assert norms_in(fuse(block)) == []


def test_backbones_keep_the_norms_of_their_outputs(settled):
    backbone = timm.create_model("patnet_t0", features_only=True, output_norms=True, out_indices=(0, 2))
    settled(backbone.model)
    x = torch.randn(1, 3, 64, 64)
    fused = fuse(backbone)
    with torch.no_grad():
        for value, expected in zip(fused(x), backbone(x), strict=True):
            assert relative_error(value, expected) <= 1e-5
    assert norms_in(fused) == ["model.output_norms.0", "model.output_norms.1", "model.output_norms.2"]


@pytest.mark.parametrize("position", ["untouched", "all"])
def test_a_norm_that_depends_on_its_input_stays(settled, position):
    args = {"embed_dim": 8, "depths": (1, 1), "num_heads": 2, "mixers": ("pat_ch",) * 2, "ch_norm_position": position}
    model = settled(PATNet(**args, norm_layer="groupnorm1"))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(fuse(model)(x), model(x)) <= 1e-5
    assert any(isinstance(part, nn.GroupNorm) for part in fuse(model).modules())


def test_it_cannot_be_trained():
    fused = fuse(timm.create_model("patnet_t0", depths=(1, 1, 1, 1)))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fused.train()
    assert fused.eval() is fused


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype):
    model = trained_like("patnet_t0").to(dtype).to(memory_format=torch.channels_last)
    fused = fuse(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    assert fused.stages[0].blocks[0].mixer.conv.weight.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.float64:
        x = torch.randn(1, 3, 32, 32, dtype=dtype)
        with torch.no_grad():
            assert relative_error(fused(x), model(x)) <= 1e-12


def test_on_meta_it_fuses_the_shapes():
    fused = fuse(timm.create_model("patnet_t0", device="meta"))
    assert {parameter.device.type for parameter in fused.parameters()} == {"meta"}
    assert norms_in(fused) == []


def test_scripted_compiled_exported():
    model = trained_like("patnet_t0", depths=(1, 1, 1, 1))
    fused = fuse(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(fused, (x,), strict=False).module()
        for form in (torch.jit.script(fused), torch.compile(fused, backend="eager", fullgraph=True), program):
            assert relative_error(form(x), expected) <= 1e-5


def test_other_models_of_timm_are_fused_by_timm():
    model = timm.create_model("repvit_m0_9").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fuse(model)(x), model(x)) <= 1e-3
    assert len(list(fuse(model).modules())) < len(list(model.modules()))
