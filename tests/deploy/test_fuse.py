import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import reparameterize_model
from torch import nn

from patnet import PATNet, fuse
from patnet.nn import (
    CHANNEL_ATTENTIONS,
    MIXERS,
    MLP,
    SPATIAL_ATTENTIONS,
    Full_ch,
    Full_sf,
    Full_sp,
    PAT_cbam,
    PAT_ch,
    PAT_sf,
    PAT_sp,
    PConv,
)

NORMS = (nn.modules.batchnorm._BatchNorm,)


def relative_error(value, expected):
    return ((value - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def lived_in(name):
    """A network with its own start values, and norm statistics as after training: not 0 and 1."""
    model = timm.create_model(name, num_classes=10)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif key.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape))
    return model.eval()


def norms_in(module):
    return [name for name, part in module.named_modules() if isinstance(part, NORMS)]


@settings(max_examples=25)
@given(
    dim=st.sampled_from([8, 16, 24]),
    depths=st.lists(st.integers(1, 2), min_size=2, max_size=3),
    ratio=st.sampled_from([0.25, 0.5, 1]),
    mlp_ratio=st.sampled_from([1.0, 2.0, 2.5]),
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
    spatial_attn=st.sampled_from(list(SPATIAL_ATTENTIONS)),
    act=st.sampled_from(["gelu", "relu"]),
    data=st.data(),
)
def test_a_fused_network_is_the_same_network(
    settled, dim, depths, ratio, mlp_ratio, channel_attn, spatial_attn, act, data
):
    mixer = st.sampled_from(list(MIXERS))
    model = PATNet(
        embed_dim=dim,
        depths=depths,
        mixers=[data.draw(mixer) for _ in depths],
        num_heads=2,
        partial_ratio=ratio,
        mlp_ratio=mlp_ratio,
        channel_attn=channel_attn,
        spatial_attn=spatial_attn,
        position_method=data.draw(st.sampled_from(["euclidean", "product", "none"])),
        ch_norm_position=data.draw(st.sampled_from(["untouched", "all"])),
        sf_norm_position=data.draw(st.sampled_from(["before", "after"])),
        window_size=3,
        act_layer=act,
        num_classes=5,
        feature_dim=16,
        drop_path_rate=0.2,
        drop_rate=0.1,
    )
    settled(model.double())  # random weights amplify what float32 rounds off
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model.train())
    model.eval()
    x = torch.randn(2, 3, 32, 48, **DOUBLE)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(fused(x), expected) <= 1e-9
        assert relative_error(fuse(fused)(x), expected) <= 1e-9
        assert relative_error(reparameterize_model(model)(x), expected) <= 1e-9
    assert norms_in(fused) == []
    assert not any(isinstance(part, nn.Dropout) and part.p > 0 for part in fused.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


DOUBLE = {"dtype": torch.float64}
VARIED = [
    *({"mixers": (name,) * 2} for name in MIXERS),
    *({"mixers": (mixer,) * 2, "channel_attn": name} for name in CHANNEL_ATTENTIONS for mixer in ("pat_ch", "full_ch")),
    *({"mixers": ("pat_ch", "pat_sf"), "spatial_attn": name} for name in SPATIAL_ATTENTIONS),
    *({"mixers": ("pat_ch",) * 2, "ch_norm_position": "all", "norm_layer": norm} for norm in (None, "groupnorm1")),
    *({"mixers": (name,) * 2, "sf_norm_position": "after"} for name in ("pat_sf", "full_sf", "pat_lka", "full_lka")),
]


@pytest.mark.parametrize(
    "args", VARIED, ids=lambda args: "-".join(map(str, {**args, "mixers": args["mixers"][0]}.values()))
)
def test_each_entry_and_option(settled, args):
    model = settled(
        PATNet(embed_dim=8, depths=(1, 1), num_heads=2, window_size=3, num_classes=5, feature_dim=8, **args, **DOUBLE)
    )
    x = torch.randn(2, 3, 32, 48, **DOUBLE)
    fused = fuse(model)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) <= 1e-9
        assert relative_error(fuse(fused)(x), model(x)) <= 1e-9
    assert norms_in(fused) == []


@pytest.mark.parametrize("variant", ["t0", "t1", "t2", "s", "m", "l"])
def test_every_variant(variant):
    model = lived_in(f"patnet_{variant}")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fused = fuse(model)
        error = relative_error(fused(x), expected)
        print(f"patnet_{variant}: relative error {error:.1e}")
        assert error <= 1e-5
        in_bfloat16, unfused = (
            relative_error(network.bfloat16()(x.bfloat16()).float(), expected) for network in (fused, model)
        )
        print(f"patnet_{variant}: relative error in bfloat16 {in_bfloat16:.1e}, unfused {unfused:.1e}")
        # What 8 bits of mantissa cost a network this deep; fusing must not add to it.
        assert in_bfloat16 <= max(1e-2, 1.25 * unfused)


@pytest.mark.parametrize(
    "block",
    [
        PConv(16),
        PAT_ch(16),
        PAT_ch(16, channel_attn="none"),
        PAT_ch(16, norm_position="all"),
        Full_ch(16, channel_attn="srm"),
        PAT_sp(16),
        Full_sp(16),
        PAT_cbam(16),
        PAT_sf(16, num_heads=2),
        PAT_sf(16, num_heads=2, norm_position="after"),
        Full_sf(16, num_heads=2),
        MLP(16),
        MLP(16, spatial_attn="full_sp"),
    ],
    ids=lambda block: type(block).__name__,
)
def test_single_blocks_on_their_own_and_inside_another_network(block, settled):
    settled(block)
    x = torch.randn(2, 16, 5, 7)
    whole = nn.Sequential(nn.Conv2d(16, 16, 1), block, nn.BatchNorm2d(16)).eval()
    with torch.no_grad():
        assert relative_error(fuse(block)(x), block(x)) <= 1e-5
        assert relative_error(fuse(whole)(x), whole(x)) <= 1e-5
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


def test_a_norm_that_depends_on_its_input_stays(settled):
    model = settled(PATNet(embed_dim=8, depths=(1, 1), num_heads=2, mixers=("pat_ch",) * 2, norm_layer="groupnorm1"))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(fuse(model)(x), model(x)) <= 1e-5
    assert any(isinstance(part, nn.GroupNorm) for part in fuse(model).modules())


def test_it_cannot_be_trained_and_says_so():
    fused = fuse(timm.create_model("patnet_t0"))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fused.train()
    assert fused.eval() is fused


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype):
    model = lived_in("patnet_t0").to(dtype).to(memory_format=torch.channels_last)
    fused = fuse(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    conv = fused.stages[0].blocks[0].mixer.conv
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.float64:
        x = torch.randn(1, 3, 32, 32, dtype=dtype)
        with torch.no_grad():
            assert relative_error(fused(x), model(x)) <= 1e-12


def test_on_meta_it_fuses_the_shapes():
    fused = fuse(timm.create_model("patnet_t0", device="meta"))
    assert {parameter.device.type for parameter in fused.parameters()} == {"meta"}
    assert norms_in(fused) == []


def test_scripted_compiled_exported():
    model = lived_in("patnet_t0")
    fused = fuse(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(fused, (x,), strict=False).module()
        for form in (torch.jit.script(fused), torch.compile(fused, backend="eager", fullgraph=True), program):
            assert relative_error(form(x), expected) <= 1e-5


def test_models_of_others_are_fused_as_timm_fuses_them():
    model = timm.create_model("repvit_m0_9").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(fuse(model)(x), model(x)) <= 1e-3
    assert len(list(fuse(model).modules())) < len(list(model.modules()))
