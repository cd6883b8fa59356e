import pytest
import safetensors.torch
import timm
import torch
from timm.models.fasternet import FasterNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patnet import PATNet
from patnet.models import PUBLISHED, stages_of
from patnet.models.keys import native_state_dict
from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, SPATIAL_ATTENTIONS, Mixer, PATBlock

SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": 4, "feature_dim": 64, "num_classes": 10}

VARIANTS = {  # width, depths, activation, heads, parameters, GMACs at 224
    "t0": (32, (2, 2, 6, 4), "GELU", 4, 4_298_456, 0.275),
    "t1": (48, (2, 2, 6, 4), "GELU", 6, 7_808_112, 0.610),
    "t2": (64, (2, 2, 6, 4), "ReLU", 6, 12_651_072, 1.078),
    "s": (96, (2, 2, 9, 4), "ReLU", 6, 28_976_352, 2.828),
    "m": (128, (2, 3, 16, 4), "ReLU", 6, 61_367_424, 6.996),
    "l": (160, (2, 3, 20, 4), "ReLU", 6, 104_465_984, 12.466),
}
FASTERNET = {"t0": 3_905_500, "t1": 7_595_368, "t2": 14_982_888, "s": 31_181_032, "m": 53_521_464, "l": 93_465_192}


@pytest.mark.parametrize("size", ["64x64", "64x96"])
def test_computes_what_the_authors_network_computes(authors_file, size):
    reference = safetensors.torch.load_file(authors_file)
    weights = {key.removeprefix("weights."): v for key, v in reference.items() if key.startswith("weights.")}
    model = PATNet(**SMALL, act_layer="gelu").eval()
    model.load_state_dict(native_state_dict(weights), strict=True)
    with torch.no_grad():
        features, stages = model.forward_intermediates(reference[f"input.{size}"].float())
        logits = model.forward_head(features)
    for name, value in {"logits": logits, **{f"stage{i}": stage for i, stage in enumerate(stages)}}.items():
        expected = reference[f"{name}.{size}"]
        assert (value - expected).abs().max() <= 2e-6 * expected.abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_size_of_each_variant_and_its_peer(variant):
    dim, depths, act, heads, parameters, gmacs = VARIANTS[variant]
    model = timm.create_model(f"patnet_{variant}", device="meta").eval()
    assert model.stem.conv.out_channels == dim
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    assert {type(block.mlp.act).__name__ for stage in model.stages for block in stage.blocks} == {act}
    assert {block.mixer.num_heads for block in model.stages[3].blocks} == {heads}
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(counter.get_total_flops() / 2e9, 3) == gmacs
    peer = timm.create_model(f"fasternet_{variant}", device="meta")
    assert sum(parameter.numel() for parameter in peer.parameters()) == FASTERNET[variant]
    assert PUBLISHED[f"patnet_{variant}"] > PUBLISHED[f"fasternet_{variant}"]


def test_pconv_throughout_is_fasternet(settled):
    theirs = settled(FasterNet(embed_dim=16, depths=(1, 2, 1, 1), feature_dim=64, num_classes=10))
    args = {**SMALL, "depths": (1, 2, 1, 1)}
    ours = PATNet(**args, mixers=("pconv",) * 4, spatial_attn="none").eval()
    places = [("patch_embed.proj", "stem.conv"), ("patch_embed.norm", "stem.norm"), (".reduction", ".conv")]
    places += [(".spatial_mixing.partial_conv3", ".mixer.conv"), (".mlp.0", ".conv1"), (".mlp.1", ".norm")]
    places += [(".mlp.3", ".conv2")]
    weights = {}
    for key, value in theirs.state_dict().items():
        key = key.replace(".mlp.", ".mlp.mlp.")
        for there, here in places:
            key = key.replace(there, here)
        weights[key] = value
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours(x), theirs(x))


def test_start_values():
    for name, parameter in PATNet(**SMALL).named_parameters():
        if name.endswith("bias") or "position.table" in name:
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 500:
            assert 0.017 < parameter.std() < 0.023, name
            assert parameter.abs().max() < 0.5


class Doubled(nn.Module):
    def __init__(self, dim, norm_layer=None, doublings=1, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1), 2.0**doublings, device=device, dtype=dtype))

    def forward(self, x):
        return self.weight * x


@pytest.mark.parametrize(
    ("table", "argument", "count"),
    [(CHANNEL_ATTENTIONS, "channel_attn", 4), (SPATIAL_ATTENTIONS, "spatial_attn", 5)],
)
def test_a_new_attention_is_one_entry(monkeypatch, table, argument, count):
    monkeypatch.setitem(table, "doubled", Doubled)
    model = timm.create_model("patnet_t0", **SMALL | {argument: "doubled"})
    assert sum(isinstance(module, Doubled) for module in model.modules()) == count
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_new_mixer_with_an_option_of_its_own_is_one_entry(monkeypatch):
    class Residual(PATBlock):
        pass

    monkeypatch.setitem(MIXERS, "doubled", Mixer(Doubled, Residual, ("doublings",)))
    model = timm.create_model("patnet_t0", **SMALL, mixers=("pat_ch", "doubled", "pconv", "doubled"), doublings=3)
    assert isinstance(model.stages[1].blocks[0], Residual)
    assert (model.stages[3].blocks[0].mixer.weight == 8).all()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("output_norms", [False, True])
@pytest.mark.parametrize(("batch", "level"), [(1, 0.0), (1, 1.0), (4, -2.1)])
def test_a_batch_of_one_constant_image_has_finite_gradients(batch, level, output_norms):
    model = timm.create_model("patnet_t0", num_classes=10, output_norms=output_norms).train()
    images = torch.full((batch, 3, 64, 64), level)
    if output_norms:  # as under a detector
        sum(y.square().sum() for y in model.forward_intermediates(images, intermediates_only=True)).backward()
    else:
        nn.functional.cross_entropy(model(images), torch.arange(batch)).backward()
        assert model.classifier.bias.grad.any()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e3 for gradient in gradients)


def test_every_other_batch_has_the_gradients_of_the_layers_themselves():
    model = timm.create_model("patnet_t0", **SMALL, attn_drop_rate=0, proj_drop_rate=0).train()
    images = torch.zeros(2, 3, 64, 64)
    images[1, 2, 63, 63] = 1e-3

    def gradients(features):
        return torch.autograd.grad(features.square().sum(), list(model.stages.parameters()))

    with_check, without = (gradients(f) for f in (model.forward_features(images), model.stages(model.stem(images))))
    assert all(torch.equal(a, b) for a, b in zip(with_check, without, strict=True))
    assert with_check[0].any()


def test_options_reach_the_mixers():
    mixers = ("pat_window", "full_lka", "pat_ch", "pat_sf")
    args = {"ch_norm_position": "all", "sf_norm_position": "after", "window_size": 5, "position_mode": "contextual"}
    window, kernel, channel, self_attention = (
        stage.blocks[0].mixer for stage in timm.create_model("patnet_t0", **SMALL, mixers=mixers, **args).stages
    )
    assert window.attn.window_size == 5
    assert window.attn.num_heads == 4
    assert window.attn.position.contextual
    for mixer, norm in ((window, nn.LayerNorm), (kernel, nn.LayerNorm), (channel, nn.BatchNorm2d)):
        assert isinstance(mixer.norm, nn.Identity)
        assert isinstance(mixer.norm_all, norm)
    assert isinstance(self_attention.norm_all, nn.LayerNorm)


def test_the_usual_network_has_the_usual_weights():
    # Checkpoints, and the optimizers in those of runs, use these names in this order.
    names = [name for name, _ in timm.create_model("patnet_t0", **SMALL).named_parameters()]
    ch, sf = (
        [name.split("mixer.")[1] for name in names if name.startswith(f"stages.{stage}.blocks.0.mixer.")]
        for stage in (0, 3)
    )
    assert ch == ["conv.weight", "attn.mix.weight", "attn.norm.weight", "attn.norm.bias", "norm.weight", "norm.bias"]
    assert sf == [
        *("conv.weight", "norm.weight", "norm.bias", "qkv.weight"),
        *("position.table", "proj.weight", "proj.bias"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mixers": ("pat_ch", "pat_ch", "pat_ch", "pat_sv")}, r"unknown mixer 'pat_sv' \(did you mean 'pat_s"),
        ({"mixers": ("pat_ch",)}, "mixers names 1 stages and depths 4"),
        ({"spatial_attn": "pat-sp"}, r"unknown spatial_attn 'pat-sp' \(did you mean 'pat_sp'\?\)"),
        ({"num_heads": 7}, "num_heads=7 does not divide"),
        ({"partial_ratio": 0.01}, "to convolve"),
        ({"mixers": ("full_window",) * 4, "window_size": 0}, "window_size=0 has no position"),
        ({"global_pool": ""}, "set num_classes=0"),
        ({"global_pool": "catavgmax"}, "choose from avg, max, avgmax"),
        ({"global_pool": "gulu"}, "unknown global_pool 'gulu': choose from avg, max, avgmax"),
        ({"act_layer": "gulu"}, "timm has no layer 'gulu'"),
        ({"norm_layer": "batch_nrm"}, "timm has no layer 'batchnrm': act_layer='gelu', norm_layer='batch_nrm'"),
        ({"depth": (1, 1, 1, 1)}, r"no argument 'depth' \(did you mean 'depths'\?\)"),
        ({"embed_dims": 64}, r"no argument 'embed_dims' \(did you mean 'embed_dim'\?\)"),
        ({"windw_size": 3}, r"argument 'windw_size' \(did you mean 'window_size'\?\)"),
        ({"features_only": True, "output_norms": True, "feature_cls": "dict"}, "feature_cls='getter'"),
    ],
)
def test_wrong_arguments_are_refused_with_what_would_do(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        timm.create_model("patnet_t0", **wrong)


def test_stochastic_depth_rises_linearly_over_all_blocks():
    model = PATNet(**{**SMALL, "depths": (2, 2, 6, 4)}, drop_path_rate=0.26)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.02 * i for i in range(14)])
    assert rates == pytest.approx(timm.layers.calculate_drop_path_rates(0.26, [2, 2, 6, 4], stagewise=False))


def test_drop_rate_acts_before_the_classifier_in_training():
    model = PATNet(**SMALL, drop_rate=0.5)
    features = torch.randn(2, 128, 2, 2)
    kept = model.eval().forward_head(features, pre_logits=True)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert 0.2 < (dropped == 0).float().mean() < 0.8
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])


def test_output_norms_apply_to_the_outputs_alone(settled):
    plain = settled(PATNet(**SMALL))
    assert not list(plain.output_norms.parameters())
    normed = settled(PATNet(**SMALL, output_norms=True))
    assert sum(p.numel() for p in normed.output_norms.parameters()) == 2 * (16 + 32 + 64 + 128)
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 96)
    assert torch.equal(normed(x), plain(x))
    trunk, outputs = normed.forward_intermediates(x)
    same_trunk, raw = plain.forward_intermediates(x)
    assert torch.equal(trunk, same_trunk)
    for output, norm, stage in zip(outputs, normed.output_norms, raw, strict=True):
        torch.testing.assert_close(output, norm(stage))
        assert not torch.allclose(output, stage)
    sum(output.square().mean() for output in outputs).backward()
    assert all(norm.weight.grad.any() for norm in normed.output_norms)


def test_an_image_too_small_for_the_stages_or_without_a_batch_is_refused():
    model = PATNet(**SMALL).eval()
    with pytest.raises(AssertionError, match=r"must be a batch \(N, in_chans, H, W\)"):
        model(torch.randn(3, 64, 64))
    for shape in [(1, 3, 31, 64), (1, 3, 64, 31)]:
        with pytest.raises(AssertionError, match="at least 32x32"):
            model(torch.randn(shape))
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    model.prune_intermediate_layers([0, 1])
    with pytest.raises(AssertionError, match="at least 8x8"):
        model(torch.randn(1, 3, 6, 6))


def test_stages_of_any_model_of_timm():
    for name, channels in (("patnet_t0", [32, 64, 128, 256]), ("resnet18", [64, 64, 128, 256, 512])):
        assert [stage["num_chs"] for stage in stages_of(timm.create_model(name, device="meta"))] == channels
    backbone = timm.create_model("patnet_t0", features_only=True, device="meta")
    assert [stage["reduction"] for stage in stages_of(backbone)] == [4, 8, 16, 32]
    assert stages_of(nn.Linear(1, 1)) == []
