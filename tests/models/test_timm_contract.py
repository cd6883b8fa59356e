"""The contract that timm's own tests check for every model of timm, checked for ours."""

import copy

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_pretrained_cfg
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import patnet  # noqa: F401  registers the models

VARIANTS = ["patnet_t0", "patnet_t1", "patnet_t2", "patnet_s", "patnet_m", "patnet_l"]
SMALL = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 4, "feature_dim": 64, "num_classes": 10}
CHANNELS = [16, 32, 64, 128]


VARIED = [
    {"position_mode": "contextual"},
    {"mixers": ("conv", "full_ch", "pat_linear", "full_sf"), "channel_attn": "quantile", "spatial_attn": "full_sp"},
    {"mixers": ("dwconv7", "pat_ch", "pat_window", "pat_lka"), "channel_attn": "srm", "spatial_attn": "cbam"},
    {"channel_attn": "gct", "partial_ratio": 0.5, "ch_norm_position": "all", "sf_norm_position": "after"},
]


def small(**kwargs):
    return timm.create_model("patnet_t0", **SMALL | kwargs)


def test_is_listed():
    assert set(VARIANTS) <= set(timm.list_models("patnet*"))


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[4:]]


@pytest.mark.parametrize("name", VARIANTS[:4] + LARGE)
def test_forward_and_backward(name):
    model = timm.create_model(name, num_classes=7).train()
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 7)
    y.mean().backward()
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not lacking
    assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_default_cfg_and_head(name):
    model = timm.create_model(name, device="meta").eval()
    cfg = model.default_cfg
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features).shape == (1, cfg["num_classes"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    state = model.state_dict()
    assert cfg["classifier"] + ".weight" in state
    assert state[cfg["first_conv"] + ".weight"].shape[1] == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert get_pretrained_cfg(name).crop_pct == 0.9

    model.reset_classifier(0)
    assert model(x).shape == (1, model.head_hidden_size)
    assert model.num_classes == 0
    model.reset_classifier(0, "")
    assert model(x).shape == (1, model.head_hidden_size, *cfg["pool_size"])
    assert not [key for key in model.state_dict() if key.startswith(cfg["classifier"])]
    model.reset_classifier(5, "avg")
    assert model(x).shape == (1, 5)
    assert model.get_classifier().weight.device.type == "meta"


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_scripts_traces_exports_and_gives_features(name):
    x = torch.randn(1, 3, 96, 96)
    with timm.layers.set_scriptable(True):
        model = timm.create_model(name, num_classes=7).eval()
    with torch.no_grad():
        expected = model(x)
        for form in (torch.jit.script(model), torch.export.export(model, (x,), strict=False).module()):
            torch.testing.assert_close(form(x), expected)
        traced = create_feature_extractor(model, {"classifier": "logits"})
        torch.testing.assert_close(traced(x)["logits"], expected)
    backbone = timm.create_model(name, features_only=True).eval()
    outputs = backbone(x)
    assert [o.shape[1] for o in outputs] == backbone.feature_info.channels()
    assert [96 // o.shape[-1] for o in outputs] == backbone.feature_info.reduction()
    assert all(o.isfinite().all() for o in outputs)


def test_reset_classifier_keeps_mode_and_dtype_and_initialises():
    model = small(dtype=torch.float64).eval()
    model.reset_classifier(6)
    classifier = model.get_classifier()
    assert classifier.weight.dtype == torch.float64
    assert not any(module.training for module in model.modules())
    assert 0.015 < classifier.weight.std() < 0.025
    assert not classifier.bias.any()


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooling(settled, pool):
    model = settled(small(global_pool=pool))
    features = torch.randn(2, 128, 3, 2)
    average, maximum = features.mean((2, 3)), features.amax((2, 3))
    pooled = {"avg": average, "max": maximum, "avgmax": (average + maximum) / 2}[pool]
    hidden = torch.nn.functional.gelu(pooled @ model.conv_head.weight[:, :, 0, 0].T)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), hidden)
    torch.testing.assert_close(model.forward_head(features), hidden @ model.classifier.weight.T + model.classifier.bias)


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


@pytest.mark.parametrize("feature_cls", ["getter", "dict", "list", "hook", "fx"])
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (-2,), (0, -1), (0, 1)])
def test_features_only(settled, feature_cls, out_indices):
    model = settled(small())
    backbone = small(features_only=True, feature_cls=feature_cls, out_indices=out_indices).eval()
    inner = backbone.model if feature_cls == "getter" else backbone.graph_module if feature_cls == "fx" else backbone
    prefix = "stages." if feature_cls in ("getter", "fx") or "stages_0" not in dict(backbone.named_children()) else ""
    weights = model.state_dict()
    if not prefix:
        weights = {key.replace("stages.", "stages_", 1): value for key, value in weights.items()}
    assert not inner.load_state_dict(weights, strict=False).missing_keys

    x = torch.randn(2, 3, 64, 96)
    outputs = backbone(x)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    wanted = [i % 4 for i in out_indices]
    assert backbone.feature_info.channels() == [CHANNELS[i] for i in wanted]
    assert backbone.feature_info.reduction() == [(4, 8, 16, 32)[i] for i in wanted]
    stages = model.forward_intermediates(x, intermediates_only=True)
    assert len(outputs) == len(wanted)
    for output, i in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(output, stages[i])


@pytest.mark.parametrize(
    ("indices", "expected"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ((-3, -1), [1, 3]), ([1], [1])]
)
def test_forward_intermediates(settled, indices, expected):
    model = settled(small())
    x = torch.randn(2, 3, 64, 64)
    stages = []
    handles = [stage.register_forward_hook(lambda *args: stages.append(args[2])) for stage in model.stages]
    features = model.forward_features(x)
    for handle in handles:
        handle.remove()
    for stop_early in (False, True):
        final, intermediates = model.forward_intermediates(x, indices=indices, stop_early=stop_early)
        torch.testing.assert_close(intermediates, [stages[i] for i in expected])
        torch.testing.assert_close(final, stages[max(expected)] if stop_early else features)
    alone = model.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
    torch.testing.assert_close(alone, intermediates)
    with pytest.raises(ValueError, match="output_fmt='NLC' is not supported"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize(("indices", "kept"), [(1, 4), (2, 4), ([0, 1], 2), ([0], 1), ([-2], 3)])
def test_prune_intermediate_layers(settled, indices, kept):
    model = settled(small())
    x = torch.randn(2, 3, 64, 64)
    before = model.forward_intermediates(x, intermediates_only=True)
    pruned = copy.deepcopy(model)
    taken = pruned.prune_intermediate_layers(indices)
    assert len(pruned.stages) == len(pruned.output_norms) == kept
    torch.testing.assert_close(pruned.forward_features(x), before[kept - 1])
    torch.testing.assert_close(
        pruned.forward_intermediates(x, taken, intermediates_only=True), [before[i] for i in taken]
    )
    assert pruned(x).shape[:2] == (2, CHANNELS[kept - 1])
    assert pruned.num_features == pruned.head_hidden_size == CHANNELS[kept - 1]
    assert not [key for key in pruned.state_dict() if key.startswith(("conv_head", "classifier"))]


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


def test_channels_last_gives_the_same(settled):
    model = settled(small())
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    y = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("device", "dtype"), [("meta", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64)]
)
def test_built_on_a_device_and_in_a_dtype(device, dtype):
    model = small(device=device, dtype=dtype, output_norms=True, position_mode="contextual").eval()
    values = [value for value in model.state_dict().values() if value.is_floating_point()]
    assert {(value.device.type, value.dtype) for value in values} == {(device, dtype)}
    y = model(torch.randn(1, 3, 64, 64, device=device, dtype=dtype))
    assert (y.device.type, y.dtype) == (device, dtype)


def test_autocast_is_near_float32(settled):
    model = small().eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model.forward_features(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.forward_features(x)
    assert (y.float() - expected).norm() / expected.norm() < 0.03


def test_gradient_checkpointing_changes_no_gradient(settled):
    model = settled(small(attn_drop_rate=0, proj_drop_rate=0, depths=(2, 1, 2, 1)))
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in recomputing.stages)
    x = torch.randn(2, 3, 64, 64)
    for net in (model, recomputing):
        net.train()
        for norm in net.modules():  # statistics would move twice
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
        net(x).square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize("name", ["patnet_t0", "patnet_l"])
@pytest.mark.parametrize("output_norms", [False, True])
def test_layer_decay_rises_from_stem_to_head(name, output_norms):
    model = timm.create_model(name, device="meta", output_norms=output_norms)
    groups = param_groups_layer_decay(model, layer_decay=0.9, no_weight_decay_list=model.no_weight_decay())
    names = {id(parameter): key for key, parameter in model.named_parameters()}
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


def test_no_weight_decay_on_norms_biases_and_tables():
    model = small(position_mode="contextual")
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_weight = parameter.ndim > 1 and not name.endswith("position.table")
        assert (id(parameter) in decayed) == is_weight, name
    assert any(name.endswith("position.table") for name in model.no_weight_decay())


@pytest.mark.parametrize("args", VARIED, ids=["contextual", "conv", "window", "norms"])
def test_varied_networks_keep_the_contract(settled, args):
    with timm.layers.set_scriptable(True):
        model = settled(small(**args, output_norms=True))
    x = torch.randn(2, 3, 64, 96)
    expected = model(x)
    assert expected.shape == (2, 10)

    stages = model.forward_intermediates(x, intermediates_only=True)
    backbone = small(**args, output_norms=True, features_only=True, out_indices=(0, 1, 3)).eval()
    assert not backbone.model.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert backbone.feature_info.channels() == [16, 32, 128]
    for output, i in zip(backbone(x), (0, 1, 3), strict=True):
        torch.testing.assert_close(output, stages[i])

    nodes = {"stages.0.blocks.0.mixer": "mixer", "stages.3": "last", "flatten": "hidden", "classifier": "logits"}
    outputs = create_feature_extractor(model, nodes)(x)
    torch.testing.assert_close(outputs["logits"], expected)
    torch.testing.assert_close(outputs["last"], model.forward_features(x))
    torch.testing.assert_close(model.classifier(outputs["hidden"]), expected)
    torch.testing.assert_close(outputs["mixer"], model.stages[0].blocks[0].mixer(model.stem(x)))
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=False).module()
    for other in (torch.jit.script(model), program):
        for size in [(64, 96), (96, 64), (96, 96)]:
            y = torch.randn(3, 3, *size)
            torch.testing.assert_close(other(y), model(y))

    decayed = param_groups_layer_decay(model, layer_decay=0.9, no_weight_decay_list=model.no_weight_decay())
    assert sum(len(group["params"]) for group in decayed) == len(list(model.parameters()))
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    torch.testing.assert_close(recomputing(x), expected)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.prune_intermediate_layers([0, 1])
    assert model(x).shape[:2] == (2, 32)
