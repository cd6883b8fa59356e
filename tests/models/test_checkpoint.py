import copy
import json
import logging

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet import InputError, PATNet, fuse, load_weights, save_checkpoint
from patnet.models import load_checkpoint
from patnet.models.keys import infer_arguments

X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).sin().view(2, 3, 64, 64)


def test_a_saved_directory_is_read_by_timm_and_by_us(saved, tiny):
    model, directory = saved
    expected = model(X)
    by_timm = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    torch.testing.assert_close(by_timm(X), expected)
    for path in (directory, directory / "model.safetensors"):
        loaded = load_checkpoint(path)
        torch.testing.assert_close(loaded.model(X), expected)
        assert not loaded.model.training
        assert loaded.class_names == list("abcde")
        assert loaded.data_config["crop_pct"] == 0.9
        assert (loaded.task, loaded.file, loaded.run) == ("classification", directory / "model.safetensors", None)
        other = tiny().eval()
        assert load_weights(other, path) == []
        torch.testing.assert_close(other(X), expected)
    assert sorted(file.name for file in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_a_fused_network_is_not_saved(tmp_path, tiny):
    with pytest.raises(InputError, match="a fused network cannot be saved; save the one that it was made from"):
        save_checkpoint(fuse(tiny().eval()), tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_what_timm_did_not_make_as_a_classifier_is_not_saved(tmp_path, tiny):
    for model in (tiny(features_only=True), PATNet(**tiny.args)):
        with pytest.raises(InputError, match=f"a {type(model).__name__} cannot be saved; give a classifier of timm"):
            save_checkpoint(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_another_pooling_is_saved_as_it_is(tmp_path):
    model = timm.create_model("patnet_t0", embed_dim=8, global_pool="avg").eval()
    model.reset_classifier(3, "max")
    found = load_checkpoint(save_checkpoint(model, tmp_path)).model
    torch.testing.assert_close(found(X), model(X))


def test_saving_again_replaces(tmp_path, settled, tiny):
    for name, args in [("patnet_t0", tiny.args), ("fasternet_t0", {"num_classes": 5})]:
        model = settled(timm.create_model(name, **args))
        loaded = load_checkpoint(save_checkpoint(model, tmp_path, model_args=args))
        assert type(loaded.model) is type(model)
        torch.testing.assert_close(loaded.model(X), model(X))


def test_channels_last_grey_images_and_the_activation_are_kept(tmp_path, settled, tiny, write):
    args = {"in_chans": 1, "act_layer": "silu"}
    model = settled(tiny(**args)).to(memory_format=torch.channels_last)
    save_checkpoint(model, tmp_path / "saved", model_args=tiny.args | args)
    loaded = load_checkpoint(tmp_path / "saved")
    assert loaded.data_config["input_size"][0] == 1
    torch.testing.assert_close(loaded.model(X[:, :1]), model(X[:, :1]))
    bare = write(model.state_dict(), tmp_path / "bare.pth")  # does not show the activation
    torch.testing.assert_close(load_checkpoint(bare, act_layer="silu").model(X[:, :1]), model(X[:, :1]))


def test_a_lightning_checkpoint_of_any_mixers_is_described_by_its_hyper_parameters(tmp_path, settled, tiny, write):
    args = tiny.args | {"mixers": ("conv", "full_ch", "pat_window", "pat_lka"), "channel_attn": "se"}
    model = settled(timm.create_model("patnet_t0", **args))
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    described = {"architecture": "patnet_t0", "model_args": args}
    file = write({"state_dict": weights, "hyper_parameters": described, "epoch": 3}, tmp_path / "last.ckpt")
    torch.testing.assert_close(load_checkpoint(file).model(X), model(X))


def test_a_description_cannot_fetch_other_weights_and_must_fit(tmp_path, tiny):
    directory = save_checkpoint(tiny(), tmp_path / "saved", model_args=tiny.args)
    config = json.loads((directory / "config.json").read_text())
    config["model_args"] |= {"pretrained": True, "checkpoint_path": str(tmp_path / "other.pth")}
    (directory / "config.json").write_text(json.dumps(config))
    assert load_checkpoint(directory).model.num_classes == 5
    for wrong, message in (
        ({"label_names": "abcde"}, "its label_names are 'abcde' instead of a list"),
        ({"label_names": ["a"]}, "names 1 classes, but the network has 5"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "its preprocessing cannot be used"),
    ):
        (directory / "config.json").write_text(json.dumps(config | wrong))
        assert message in refusal(load_checkpoint, directory)


@settings(max_examples=20)
@given(
    embed_dim=st.integers(1, 6).map(lambda n: 8 * n),
    depths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    mlp_ratio=st.sampled_from([1, 2.0, 2.7]),
    partial_ratio=st.sampled_from([0.25, 0.5]),
    spatial_attn=st.sampled_from(["pat_sp", "none"]),
    position_method=st.sampled_from(["euclidean", "product"]),
    position_mode=st.sampled_from(["bias", "contextual"]),
    num_heads=st.sampled_from([1, 2]),
    num_classes=st.integers(0, 4),
    in_chans=st.integers(1, 4),
    feature_dim=st.integers(1, 20),
    output_norms=st.booleans(),
)
def test_weights_of_standard_blocks_show_their_network(settled, depths, **args):
    args |= {"depths": depths, "mixers": ("pat_ch",) * (len(depths) - 1) + ("pat_sf",)}
    model = settled(timm.create_model("patnet_t0", **args))
    name, inferred = infer_arguments(model.state_dict())
    again = timm.create_model(name, **inferred).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    assert type(again.act) is type(model.act)
    x = torch.randn(1, args["in_chans"], 32, 64)
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize(
    ("suffix", "wrapper", "prefix"),
    [(".safetensors", None, ""), (".pth", None, "model."), (".pth", "state_dict", ""), (".ckpt", "model", "model.")],
)
def test_the_authors_files(tmp_path, authors_file, write, suffix, wrapper, prefix):
    reference = safetensors.torch.load_file(authors_file)
    weights = {prefix + key[8:]: value for key, value in reference.items() if key.startswith("weights.")}
    file = write({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / f"authors{suffix}")
    model = load_checkpoint(file).model
    assert next(model.parameters()).dtype == torch.float32
    expected = reference["logits.64x96"]
    assert (model(reference["input.64x96"].float()) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("variant", ["t0", "t1", "t2", "s", "m", "l"])
def test_weights_of_each_variant_show_it(variant):
    model = timm.create_model(f"patnet_{variant}", device="meta")
    name, args = infer_arguments(model.state_dict())
    assert name == f"patnet_{variant}"
    again = timm.create_model(name, device="meta", **args)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_other_classes_and_channels_are_adapted_with_a_message(saved, tiny, caplog):
    model, directory = saved
    with caplog.at_level(logging.WARNING, "patnet"):
        other = tiny(num_classes=3, in_chans=1)
        start = other.classifier.weight.clone()
        said = load_weights(other, directory)
    assert said == [
        "the classifier is newly initialised: 5 classes in the checkpoint, 3 classes here",
        "the first convolution was adapted from 3 to 1 input channels",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"{directory}: {message}" for message in said]
    assert torch.equal(other.classifier.weight, start)
    grey = X[:, :1]
    expected = model.forward_features(grey.expand(-1, 3, -1, -1))
    assert (other.eval().forward_features(grey) - expected).norm() / expected.norm() < 1e-4

    built = load_checkpoint(directory, num_classes=3, in_chans=1)
    assert built.class_names == ["0", "1", "2"]
    torch.testing.assert_close(built.model.forward_features(grey), other.forward_features(grey))


def test_a_classifier_is_added_and_left_out(tmp_path, saved, tiny, write):
    model, directory = saved
    headless = tiny(num_classes=0).eval()
    assert load_weights(headless, directory) == []
    torch.testing.assert_close(headless(X), model.forward_head(model.forward_features(X), pre_logits=True))
    file = write(headless.state_dict(), tmp_path / "headless.pth")
    message = "the classifier is newly initialised: none in the checkpoint, 5 classes here"
    assert load_weights(tiny(), file) == [message]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2), (1,), (-1,)])
def test_backbones_are_loaded_with_however_few_stages(saved, tiny, out_indices):
    model, directory = saved
    expected = model.forward_intermediates(X, list(out_indices), intermediates_only=True)
    options = {"features_only": True, "out_indices": out_indices}
    loaded = tiny(**options).eval()
    assert load_weights(loaded, directory) == []
    built = load_checkpoint(directory, **options)
    assert built.class_names == []
    by_timm = timm.create_model(f"local-dir:{directory}", pretrained=True, **options).eval()
    for backbone in (loaded, built.model, by_timm):
        torch.testing.assert_close(backbone(X), expected)


def test_what_a_kept_stage_lacks_is_never_left_out(tmp_path, tiny, write):
    deeper = write(tiny(depths=(1, 1, 3, 1)).state_dict(), tmp_path / "deeper.pth")
    usual = write(tiny().state_dict(), tmp_path / "usual.pth")
    resnet = write(timm.create_model("test_resnet", layers=(1, 2, 1, 1)).state_dict(), tmp_path / "resnet.pth")
    for options in ({"num_classes": 0}, {"features_only": True}, {"features_only": True, "out_indices": (0, 2)}):
        assert "it has stages.2.blocks.1" in refusal(load_weights, tiny(**options), deeper)
        assert "mlp.attn." in refusal(load_weights, tiny(**options, spatial_attn="none"), usual)
        getter = {"feature_cls": "getter"} if "features_only" in options else {}
        assert "it has layer2.1" in refusal(load_weights, timm.create_model("test_resnet", **options, **getter), resnet)
    assert load_weights(tiny(features_only=True, out_indices=(0, 1)), deeper) == []


def test_output_norms_are_newly_initialised_with_a_message(saved, tiny):
    model, directory = saved
    backbone = tiny(features_only=True, output_norms=True)
    message = "the norms of the stage outputs are newly initialised: the checkpoint has none"
    assert load_weights(backbone, directory) == [message]
    torch.testing.assert_close(backbone.eval().model.forward_features(X), model.forward_features(X))


def refusal(call, *args):
    with pytest.raises(InputError) as raised:
        call(*args)
    assert str(args[-1]) in str(raised.value)
    return str(raised.value)


def test_weights_of_another_architecture(tmp_path, write):
    for name in ("fasternet_t0", "resnet18"):
        file = write(timm.create_model(name).state_dict(), tmp_path / f"{name}.pth")
        assert "not those of a PATNet of standard blocks" in refusal(load_checkpoint, file)
        assert "another architecture" in refusal(load_weights, timm.create_model("patnet_t0"), file)
    t1 = write(timm.create_model("patnet_t1").state_dict(), tmp_path / "t1.pth")
    message = refusal(load_weights, timm.create_model("patnet_t0"), t1)
    assert "another architecture" in message
    assert "(48," in message
    assert "patnet.load builds the network that fits it" in message
    backbone = timm.create_model("patnet_t0", features_only=True, feature_cls="dict")
    assert "takes no checkpoint" in refusal(load_weights, backbone, t1)


def test_nothing_is_loaded_if_something_does_not_fit(tmp_path, tiny, write):
    weights = tiny().state_dict()
    del weights["stages.2.blocks.0.mlp.conv2.weight"]
    file = write(weights, tmp_path / "weights.pth")
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    assert "it lacks stages.2.blocks.0.mlp.conv2.weight" in refusal(load_weights, model, file)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    refusal(load_checkpoint, file)


@pytest.mark.parametrize("shape", [(), (8,), (0, 3, 4, 4), (8, 3)])
def test_impossible_shapes(tmp_path, tiny, write, shape):
    file = write({**tiny().state_dict(), "stem.conv.weight": torch.ones(shape)}, tmp_path / "weights.pth")
    refusal(load_checkpoint, file)
