"""What timm's own tests check for every model of timm, checked for all six networks and for varied ones."""

import copy

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_pretrained_cfg
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import patnet  # noqa: F401  registers the models

VARIANTS = [f"patnet_{size}" for size in ("t0", "t1", "t2", "s", "m", "l")]
SMALL = {"embed_dim": 16, "feature_dim": 64, "num_classes": 10}
SHALLOW = {"depths": (1, 1, 1, 1)}
CHANNELS = [16, 32, 64, 128]
VARIED = {
    "conv": {"mixers": ("conv", "full_ch", "pat_linear", "full_sf"), "channel_attn": "quantile"},
    "window": {"mixers": ("dwconv7", "pat_ch", "pat_window", "pat_lka"), "channel_attn": "srm", "spatial_attn": "cbam"},
    "norms": {"channel_attn": "gct", "partial_ratio": 0.5, "ch_norm_position": "all", "sf_norm_position": "after"},
    "outputs": {"output_norms": True, "position_mode": "contextual", "spatial_attn": "full_sp"},
}
NETWORKS = {**{name: (name, {}) for name in VARIANTS}, **{key: ("patnet_t0", args) for key, args in VARIED.items()}}
STAGES = [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ((-3, -1), [1, 3]), ([1], [1])]


@pytest.fixture(params=NETWORKS)
def make(request):
    """Makes one of the networks, narrow; arguments differ from its own."""
    name, own = NETWORKS[request.param]
    return lambda **args: timm.create_model(name, **SMALL | own | args)


QUICK = ("patnet_t2", "conv", "outputs")
some_slow = pytest.mark.parametrize(
    "make", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS], indirect=True
)


def small(**args):
    return timm.create_model("patnet_t0", **SMALL | SHALLOW | args)


def test_is_listed():
    assert set(VARIANTS) <= set(timm.list_models("patnet*"))
    assert all(get_pretrained_cfg(name).crop_pct == 0.9 for name in VARIANTS)


def test_forward_and_backward(make):
    model = make().train()
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    assert y.shape == (2, 10)
    y.mean().backward()
    outputs = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(name.startswith("output_norms.") for name in outputs)
    assert model.eval()(x).isfinite().all()


def test_configuration_and_head(make):
    model = make(**SHALLOW, dtype=torch.float64).eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert (cfg["input_size"], cfg["pool_size"]) == ((3, 224, 224), (7, 7))
    assert state[cfg["first_conv"] + ".weight"].shape[1] == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 3)
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model.classifier(hidden))

    model.reset_classifier(0)
    torch.testing.assert_close(model(x), hidden)
    assert model.num_classes == 0
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.head_hidden_size, 2, 3)
    assert not [key for key in model.state_dict() if key.startswith(cfg["classifier"])]
    model.reset_classifier(50, "avg")
    assert model(x).shape == (2, 50)
    classifier = model.get_classifier()
    assert classifier.weight.dtype == torch.float64
    assert not any(module.training for module in model.modules())
    assert 0.015 < classifier.weight.std() < 0.025
    assert not classifier.bias.any()


def test_stages_are_given_chosen_and_pruned(settled, make):
    model = settled(make(**SHALLOW))
    x = torch.randn(2, 3, 64, 96)
    trunk, stages = model.forward_intermediates(x)
    torch.testing.assert_close(trunk, model.forward_features(x))
    for indices, expected in STAGES:
        wanted = [stages[i] for i in expected]
        for stop_early in (False, True):
            final, found = model.forward_intermediates(x, indices=indices, stop_early=stop_early)
            torch.testing.assert_close(found, wanted)
            assert final.shape[1] == (CHANNELS[max(expected)] if stop_early else 128)
        torch.testing.assert_close(model.forward_intermediates(x, indices, norm=True, intermediates_only=True), wanted)

        backbone = make(**SHALLOW, features_only=True, out_indices=expected).eval()
        assert not backbone.model.load_state_dict(model.state_dict(), strict=False).missing_keys
        torch.testing.assert_close(backbone(x), wanted)
        assert backbone.feature_info.channels() == [CHANNELS[i] for i in expected]
        assert backbone.feature_info.reduction() == [(4, 8, 16, 32)[i] for i in expected]

        pruned, kept = copy.deepcopy(model), max(expected) + 1
        taken = pruned.prune_intermediate_layers(4 if indices is None else indices)
        torch.testing.assert_close(pruned.forward_intermediates(x, taken, intermediates_only=True), wanted)
        assert len(pruned.stages) == len(pruned.output_norms) == kept
        assert pruned(x).shape[:2] == (2, CHANNELS[kept - 1])
        assert pruned.num_features == pruned.head_hidden_size == CHANNELS[kept - 1]
        assert not [key for key in pruned.state_dict() if key.startswith(("conv_head", "classifier"))]
    with pytest.raises(ValueError, match="output_fmt='NLC' is not supported"):
        model.forward_intermediates(x, output_fmt="NLC")


@some_slow
def test_scripted_exported_traced_by_fx_and_in_channels_last_compute_the_same(settled, make):
    with timm.layers.set_scriptable(True):
        model = settled(make(**SHALLOW))
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=False).module()
    for other in (torch.jit.script(model), program):
        for size in [(64, 96), (96, 64)]:
            y = torch.randn(3, 3, *size)
            torch.testing.assert_close(other(y), model(y))
    with timm.layers.set_scriptable(True):
        backbone = make(**SHALLOW, features_only=True, out_indices=(0, 2)).eval()
    torch.testing.assert_close(torch.jit.script(backbone)(x), backbone(x))
    nodes = {"stages.0.blocks.0.mixer": "mixer", "stages.3": "last", "flatten": "hidden", "classifier": "logits"}
    outputs = create_feature_extractor(model, nodes)(x)
    torch.testing.assert_close(outputs["logits"], expected)
    torch.testing.assert_close(outputs["last"], model.forward_features(x))
    torch.testing.assert_close(model.classifier(outputs["hidden"]), expected)
    torch.testing.assert_close(outputs["mixer"], model.stages[0].blocks[0].mixer(model.stem(x)))
    y = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(settled, make):
    model = settled(make(attn_drop_rate=0, proj_drop_rate=0, depths=(2, 1, 2, 1)))
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in recomputing.stages)
    x = torch.randn(2, 3, 64, 64)
    for net in (model, recomputing):
        net(x).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_groups_of_parameters(make):
    """Learning rates rise from stem to head; norms, biases and position tables have no weight decay."""
    model = make(device="meta")
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    options = {"no_weight_decay_list": model.no_weight_decay()}
    groups = param_groups_layer_decay(model, layer_decay=0.9, **options)
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())

    def of(prefix):
        (one,) = {value for key, value in scale.items() if key.startswith(prefix)}
        return one

    blocks = [f"stages.{i}.blocks.{j}." for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]
    order = [of("stem."), *map(of, blocks), of("classifier.")]
    assert order == sorted(set(order))
    assert of("classifier.") == 1
    assert of("stages.2.downsample.") <= of("stages.2.blocks.0.")
    assert of(blocks[-1]) <= of("conv_head.") < of("classifier.")
    coarse = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse.keys() == set(names.values())
    assert len({coarse[key] for key in coarse if key.startswith("stages.2.")}) == 1

    groups = param_groups_weight_decay(model, 0.1, **options)
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert decayed == {name for name, ndim in shapes.items() if ndim > 1 and not name.endswith("position.table")}


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooling(settled, pool):
    model = settled(small(global_pool=pool))
    features = torch.randn(2, 128, 3, 2)
    average, maximum = features.mean((2, 3)), features.amax((2, 3))
    pooled = {"avg": average, "max": maximum, "avgmax": (average + maximum) / 2}[pool]
    hidden = torch.nn.functional.gelu(pooled @ model.conv_head.weight[:, :, 0, 0].T)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), hidden)


@pytest.mark.parametrize(
    ("args", "channels", "shape"),
    [
        ({"num_classes": 0}, 3, (2, 64)),
        ({"num_classes": 0, "global_pool": ""}, 3, (2, 64, 2, 2)),
        ({"in_chans": 1}, 1, (2, 10)),
        ({"in_chans": 4}, 4, (2, 10)),
    ],
)
def test_classes_pooling_and_input_channels(args, channels, shape):
    assert small(**args)(torch.randn(2, channels, 64, 64)).shape == shape


@pytest.mark.parametrize("feature_cls", ["dict", "list", "hook", "fx"])
def test_features_in_timms_other_ways(settled, feature_cls):
    model = settled(small())
    backbone = small(features_only=True, feature_cls=feature_cls, out_indices=(1, -1)).eval()
    weights = model.state_dict()
    if "stages_0" in dict(backbone.named_children()):
        weights = {key.replace("stages.", "stages_", 1): value for key, value in weights.items()}
    inner = backbone.graph_module if feature_cls == "fx" else backbone
    assert not inner.load_state_dict(weights, strict=False).missing_keys
    x = torch.randn(2, 3, 64, 96)
    outputs = backbone(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    torch.testing.assert_close(list(outputs), model.forward_intermediates(x, [1, 3], intermediates_only=True))


def test_pruning_nothing_can_keep_the_head(settled):
    model = settled(small())
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    model.prune_intermediate_layers(1, prune_head=False)
    torch.testing.assert_close(model(x), before)


def test_compiled_trains_and_follows_the_size(settled):
    torch._dynamo.reset()
    args = {"depths": (1, 1), "mixers": ("pat_ch", "pat_sf"), "attn_drop_rate": 0, "proj_drop_rate": 0}
    model = settled(small(**args)).train()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True, dynamic=True)
    for size in [(64, 64), (64, 96)]:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()


@pytest.mark.parametrize(
    ("device", "dtype"), [("meta", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64)]
)
def test_built_on_a_device_and_in_a_dtype(device, dtype):
    model = small(device=device, dtype=dtype, output_norms=True, position_mode="contextual").eval()
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert {(value.device.type, value.dtype) for value in values} == {(device, dtype)}
    y = model(torch.randn(1, 3, 64, 64, device=device, dtype=dtype))
    assert (y.device.type, y.dtype) == (device, dtype)


def test_autocast_is_near_float32():
    model = small().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model.forward_features(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.forward_features(x)
    assert (y.float() - expected).norm() / expected.norm() < 0.03
