import copy

import pytest
import timm
import torch
from conftest import TINY
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from patnet import InputError, save_checkpoint
from patnet.detection.backbone import Backbone, feature_network, normalization


def backbone_of(name, norm="train", width=16, **args):
    return Backbone(feature_network(name, 4, args=args)[0], LastLevelMaxPool(), norm, width)


def step(backbone, images):
    """A training step on a loss that depends on every map."""
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(x.square().mean() for x in backbone.train()(images).values()).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["patnet_t0", "fasternet_t0", "resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_levels_of_one_width_at_strides_4_to_64(name):
    with torch.no_grad():
        maps = backbone_of(name, width=32).eval()(torch.randn(2, 3, 128, 192))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [tuple(x.shape) for x in maps.values()] == [(2, 32, 128 // s, 192 // s) for s in (4, 8, 16, 32, 64)]


SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("swin_tiny_patch4_window7_224", SMALL_SWIN),
        ("swinv2_tiny_window8_256", SMALL_SWIN),
        ("twins_svt_small", {"depths": (1, 1, 1, 1)}),  # takes any size, although timm declares one
    ],
)
def test_networks_of_one_size_take_any_where_timm_can(name, args):
    torch.manual_seed(0)
    body, used = feature_network(name, 4, args=args)
    assert body.training
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3), feature_cls="getter", **args)
    side = plain.pretrained_cfg["input_size"][-1]
    with torch.no_grad():
        assert [x.shape[-2:] for x in body(torch.randn(1, 3, 64, 96))] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
        x = torch.randn(1, 3, side, side)
        torch.testing.assert_close(body.eval()(x), plain.eval()(x), rtol=0, atol=0)  # its own size, as before
    assert used.get("dynamic_img_size", False) is name.startswith("swin")
    again, _ = feature_network(name, 4, args=used)  # as a saved detector is built
    assert again.state_dict().keys() == plain.state_dict().keys()


def test_a_network_of_one_size_is_refused_unless_the_size_is_given():
    args = {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64), "stem_width": 16}
    message = "backbone maxvit_tiny_tf_224: is for images of 224x224 px, .* give a network for any size, .* img_size"
    with pytest.raises(InputError, match=message) as error:
        feature_network("maxvit_tiny_tf_224", 4, args=args)
    assert "\n" not in str(error.value)
    body, _ = feature_network("maxvit_tiny_tf_224", 4, args={**args, "img_size": (64, 96)})
    with torch.no_grad():
        assert body.eval()(torch.randn(1, 3, 64, 96))[-1].shape[-2:] == (2, 3)


@pytest.mark.parametrize(("name", "args"), [("patnet_t0", TINY), ("resnet18", {})])
@pytest.mark.parametrize("images", [1, 2])
def test_frozen_norms_stay_and_the_rest_is_trained(settled, name, args, images):
    backbone = settled(backbone_of(name, "frozen", **args))
    before = copy.deepcopy(backbone.body.state_dict())
    step(backbone, torch.randn(images, 3, 64, 96))
    changed = {key for key, value in backbone.body.state_dict().items() if not torch.equal(value, before[key])}
    norms = {n: m for n, m in backbone.body.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert sum("output_norms" in key for key in norms) == (4 if name == "patnet_t0" else 0)
    for key, norm in norms.items():
        new = "output_norms" in key  # in the detector
        assert norm.training == new
        assert {f"{key}.{part}" in changed for part in ("weight", "bias", "running_mean", "running_var")} == {new}
    conv = next(name for name, part in backbone.body.named_modules() if isinstance(part, nn.Conv2d))
    assert f"{conv}.weight" in changed


def test_frozen_norms_compute_the_same_in_training_and_evaluation_mode():
    args = {"attn_drop_rate": 0.0, "proj_drop_rate": 0.0, "output_norms": False, **TINY}
    backbone, images = backbone_of("patnet_t0", "frozen", **args), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(dict(backbone.train()(images)), dict(backbone.eval()(images)))


@pytest.mark.parametrize("size", [32, 64])  # at 32 px the last map is 1x1
def test_trained_norms_learn_from_a_single_image(size):
    backbone = backbone_of("patnet_t0", **TINY)
    step(backbone, torch.randn(1, 3, size, size))
    assert all(torch.isfinite(value).all() for value in backbone.state_dict().values())
    assert backbone.body.model.stem.norm.num_batches_tracked == 1


@pytest.mark.parametrize(("name", "args"), [("patnet_t0", {**TINY, "partial_ratio": 0.5}), ("resnet18", {})])
def test_weights_of_a_classifier(tmp_path, settled, name, args):
    classifier = settled(timm.create_model(name, num_classes=7, **args))
    save_checkpoint(classifier, tmp_path, model_args=args, data_config={"mean": (0.6,) * 3, "std": (0.2,) * 3})
    body, used = feature_network(name, 4, tmp_path)  # with the arguments of the checkpoint
    assert used.get("partial_ratio") == args.get("partial_ratio")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.forward_intermediates(x, indices=4, intermediates_only=True)
        output_norms = body.model.output_norms if name == "patnet_t0" else [nn.Identity()] * 4
        for value, plain, norm in zip(body.eval()(x), expected, output_norms, strict=True):
            torch.testing.assert_close(value, norm(plain))
    assert normalization(body, {}) == {"image_mean": [0.6] * 3, "image_std": [0.2] * 3}


@pytest.mark.parametrize(("mean", "in_chans", "expected"), [((0.6,), 3, 3 * [0.6]), ((0.6, 0.5, 0.1), 1, [0.4])])
def test_mean_and_channels_of_a_classifier_are_adapted(tmp_path, mean, in_chans, expected):
    classifier = timm.create_model("patnet_t0", num_classes=7, in_chans=len(mean), **TINY)
    save_checkpoint(classifier, tmp_path, model_args=TINY, data_config={"mean": mean, "std": mean})
    body, _ = feature_network("patnet_t0", 4, tmp_path, {"in_chans": in_chans})
    found = normalization(body, {})
    assert found == {"image_mean": pytest.approx(expected), "image_std": pytest.approx(expected)}


def test_weights_without_a_description_and_weights_that_do_not_fit(tmp_path):
    classifier = timm.create_model("patnet_t0", num_classes=7, **TINY)
    save_checkpoint(classifier, tmp_path / "t0")
    torch.save(classifier.state_dict(), tmp_path / "bare.pth")
    body, _ = feature_network("patnet_t0", 3, tmp_path / "bare.pth", TINY)
    assert torch.equal(body.model.stem.conv.weight, classifier.stem.conv.weight)
    for name, weights, message in (
        ("resnet18", "t0", "holds a patnet_t0, which does not fit backbone resnet18"),
        ("patnet_t1", "bare.pth", "belongs to another architecture"),
        ("patnet_t0", "none.pth", "no such checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            feature_network(name, 4, tmp_path / weights)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("patnet_x", {}, r"backbone 'patnet_x': no such model of patnet or timm \(did you mean 'patnet_"),
        ("levit_128s", {}, "backbone levit_128s: does not give 4 feature levels"),
        ("vit_tiny_patch16_224", {}, "strides 16, 16, 16, 16; a detector needs 4, 8, 16, 32"),
        ("patnet_t0", {"depth": 3}, "backbone patnet_t0: does not give 4 feature levels .*'depth'"),
    ],
)
def test_networks_that_cannot_be_a_backbone(name, args, message):
    with pytest.raises(InputError, match=message) as error:
        feature_network(name, 4, args=args)
    assert "\n" not in str(error.value)
