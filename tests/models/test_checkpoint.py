import contextlib
import json
import logging
import os
import pickle
import random

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet import InputError, PATNet, from_checkpoint, load_weights, save_checkpoint
from patnet.models.checkpoint import infer_arguments, read_checkpoint
from patnet.models.keys import native_state_dict
from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, SPATIAL_ATTENTIONS

TINY = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": 2, "feature_dim": 16, "num_classes": 5}
X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).sin().view(2, 3, 64, 64)


def tiny(**kwargs):
    return timm.create_model("patnet_t0", **TINY | kwargs)


def write(weights, file):
    if file.suffix == ".safetensors":
        safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, file)
    else:
        torch.save(weights, file)
    return file


def refusal(call, *args):
    """The sentence of the `InputError` that `call` raises: one line, with the file in it."""
    with pytest.raises(InputError) as raised:
        call(*args)
    message = str(raised.value)
    assert str(args[-1]) in message
    assert "\n" not in message
    assert message == message.strip()
    return message


def read_and_load_refuse(file):
    """What `from_checkpoint` and `load_weights` answer, which must be the same."""
    message = refusal(from_checkpoint, file)
    assert refusal(load_weights, tiny(), file) == message
    return message


# Round trips


@pytest.fixture(scope="module")
def saved(tmp_path_factory, settled):
    model = settled(tiny())
    return model, save_checkpoint(model, tmp_path_factory.mktemp("saved"), model_args=TINY, label_names=list("abcde"))


def test_a_saved_directory_is_read_by_timm_and_by_us(saved):
    model, directory = saved
    expected = model(X)
    loaded = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    torch.testing.assert_close(loaded(X), expected)
    for path in (directory, directory / "model.safetensors"):
        again = from_checkpoint(path).eval()
        torch.testing.assert_close(again(X), expected)
        assert again.pretrained_cfg["label_names"] == list("abcde")
        other = tiny().eval()
        assert load_weights(other, path) == []
        torch.testing.assert_close(other(X), expected)
    assert sorted(file.name for file in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_and_timms_models_go_through_too(tmp_path, settled):
    for name, args in [("patnet_t0", TINY), ("fasternet_t0", {"num_classes": 5})]:
        model = settled(timm.create_model(name, **args))
        save_checkpoint(model, tmp_path / "run" / "best", model_args=args)
        again = from_checkpoint(tmp_path / "run").eval()
        assert type(again) is type(model)
        torch.testing.assert_close(again(X), model(X))


def test_channels_last_and_grey_models_are_saved(tmp_path, settled):
    model = settled(tiny(in_chans=1)).to(memory_format=torch.channels_last)
    save_checkpoint(model, tmp_path, model_args=TINY | {"in_chans": 1})
    torch.testing.assert_close(from_checkpoint(tmp_path).eval()(X[:, :1]), model(X[:, :1]))


def test_the_activation_is_kept_where_the_weights_do_not_tell_it(tmp_path, settled):
    model = settled(tiny(act_layer="silu"))
    save_checkpoint(model, tmp_path / "saved", model_args=TINY | {"act_layer": "silu"})
    torch.testing.assert_close(from_checkpoint(tmp_path / "saved").eval()(X), model(X))
    bare = write(model.state_dict(), tmp_path / "bare.pth")
    torch.testing.assert_close(from_checkpoint(bare, act_layer="silu").eval()(X), model(X))


@settings(max_examples=25)
@given(
    embed_dim=st.integers(3, 12).map(lambda n: 2 * n),
    depths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    mlp_ratio=st.sampled_from([0.5, 1, 4 / 3, 2.0, 2.7, 4]),
    partial_ratio=st.sampled_from([0.2, 0.25, 0.3, 0.5, 2 / 3]),
    mixer_names=st.lists(
        st.sampled_from(["pconv", "pat_ch", "pat_sf"]) | st.sampled_from(list(MIXERS)), min_size=4, max_size=4
    ),
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
    spatial_attn=st.sampled_from(list(SPATIAL_ATTENTIONS)),
    norm_positions=st.sampled_from([("untouched", "before"), ("all", "after")]),
    position=st.sampled_from(["euclidean", "product"]),
    mode=st.sampled_from(["bias", "contextual"]),
    num_classes=st.integers(0, 4),
    in_chans=st.integers(1, 4),
    feature_dim=st.integers(1, 20),
    output_norms=st.booleans(),
)
def test_weights_tell_the_network_that_they_belong_to(
    settled,
    embed_dim,
    depths,
    mlp_ratio,
    partial_ratio,
    mixer_names,
    channel_attn,
    spatial_attn,
    norm_positions,
    position,
    mode,
    num_classes,
    in_chans,
    feature_dim,
    output_norms,
):
    mixers = mixer_names[: len(depths)]
    untouched = [dim - int(partial_ratio * dim + 1e-6) for dim in (embed_dim * 2**i for i in range(len(depths)))]
    attended = [*untouched, embed_dim]
    num_heads = max(heads for heads in (1, 2, 3) if all(count % heads == 0 for count in attended))
    model = settled(
        timm.create_model(
            "patnet_t0",
            embed_dim=embed_dim,
            depths=depths,
            mlp_ratio=mlp_ratio,
            partial_ratio=partial_ratio,
            num_heads=num_heads,
            mixers=mixers,
            channel_attn=channel_attn,
            spatial_attn=spatial_attn,
            ch_norm_position=norm_positions[0],
            sf_norm_position=norm_positions[1],
            position_method=position,
            position_mode=mode,
            num_classes=num_classes,
            in_chans=in_chans,
            feature_dim=feature_dim,
            output_norms=output_norms,
        )
    )
    name, args = infer_arguments(model.state_dict())
    if not any(key.endswith("position.table") for key in model.state_dict()):
        args["num_heads"] = num_heads  # leave no trace without a table
    again = timm.create_model(name, **args).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, in_chans, 32, 64)
    torch.testing.assert_close(again(x), model(x))
    torch.testing.assert_close(
        again.forward_intermediates(x, intermediates_only=True), model.forward_intermediates(x, intermediates_only=True)
    )


# The authors' files


@pytest.mark.parametrize(
    ("suffix", "wrapper"), [(".safetensors", None), (".pth", None), (".pth", "state_dict"), (".ckpt", "model")]
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_authors_files(tmp_path, authors_file, suffix, wrapper, prefix):
    reference = safetensors.torch.load_file(authors_file)
    weights = {prefix + key[8:]: value for key, value in reference.items() if key.startswith("weights.")}
    file = write({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / f"authors{suffix}")
    model = from_checkpoint(file).eval()
    assert next(model.parameters()).dtype == torch.float32
    expected = reference["logits.64x96"]
    assert (model(reference["input.64x96"].float()) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("spatial_attn", ["pat_sp", "none"])
@pytest.mark.parametrize(("width", "name", "heads"), [(32, "patnet_t0", 4), (48, "patnet_t1", 6)])
def test_the_authors_first_configurations(tmp_path, width, name, heads, spatial_attn):
    model = timm.create_model(name, depths=(1, 2, 8, 2), spatial_attn=spatial_attn)
    file = write(model.state_dict(), tmp_path / "weights.pth")
    again = from_checkpoint(file)
    assert again.stem.conv.out_channels == width
    assert type(again.act) is type(model.act)
    assert again.stages[3].blocks[0].mixer.num_heads == heads
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


# What is adapted


def test_other_classes_and_channels_are_adapted_and_said(saved, caplog):
    model, directory = saved
    with caplog.at_level(logging.WARNING, "patnet"):
        other = tiny(num_classes=3, in_chans=1)
        start = other.classifier.weight.clone()
        said = load_weights(other, directory)
    assert said == [
        "the classifier starts anew: 5 classes there, 3 here",
        "the first convolution was adapted from 3 to 1 input channels",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"{directory}: {sentence}" for sentence in said]
    assert torch.equal(other.classifier.weight, start)
    grey = X[:, :1]
    expected = model.forward_features(grey.expand(-1, 3, -1, -1))
    assert (other.eval().forward_features(grey) - expected).norm() / expected.norm() < 1e-4

    built = from_checkpoint(directory, num_classes=3, in_chans=1).eval()
    torch.testing.assert_close(built.forward_features(grey), other.forward_features(grey))


def test_a_classifier_is_added_and_left_out(tmp_path, saved):
    model, directory = saved
    headless = tiny(num_classes=0).eval()
    assert load_weights(headless, directory) == []
    torch.testing.assert_close(headless(X), model.forward_head(model.forward_features(X), pre_logits=True))
    file = write(headless.state_dict(), tmp_path / "headless.pth")
    assert load_weights(tiny(), file) == ["the classifier starts anew: none there, 5 classes here"]


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (0, 2), (1,), (-1,)])
def test_backbones_are_loaded_however_few_stages_they_keep(saved, out_indices):
    model, directory = saved
    expected = model.forward_intermediates(X, list(out_indices), intermediates_only=True)
    loaded = tiny(features_only=True, out_indices=out_indices).eval()
    assert load_weights(loaded, directory) == []
    built = from_checkpoint(directory, features_only=True, out_indices=out_indices).eval()
    by_timm = timm.create_model(
        f"local-dir:{directory}", pretrained=True, features_only=True, out_indices=out_indices
    ).eval()
    for backbone in (loaded, built, by_timm):
        torch.testing.assert_close(backbone(X), expected)


def test_output_norms_start_anew_and_that_is_said(saved):
    model, directory = saved
    backbone = tiny(features_only=True, output_norms=True)
    assert load_weights(backbone, directory) == ["the norms of the stage outputs start anew: the checkpoint has none"]
    torch.testing.assert_close(backbone.eval().model.forward_features(X), model.forward_features(X))


# What is refused


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "none.ckpt", "none"])
def test_a_missing_file(tmp_path, name):
    assert "no such checkpoint" in read_and_load_refuse(tmp_path / name)


def test_an_empty_directory_and_a_run_without_weights(tmp_path):
    assert "holds no model.safetensors" in read_and_load_refuse(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    assert "has not finished an epoch" in read_and_load_refuse(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello, this is a text\n" * 20, b"\x80\x02", b"PK\x03\x04" + bytes(50)]
)
def test_no_checkpoint_at_all(tmp_path, suffix, content):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    read_and_load_refuse(file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_cut_short(tmp_path, saved, suffix, share):
    model, _ = saved
    file = write(model.state_dict(), tmp_path / f"weights{suffix}")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert "damaged" in read_and_load_refuse(file)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    suffix=st.sampled_from([".safetensors", ".pth", ".legacy"]),
    near_start=st.booleans(),
    cut=st.booleans(),
)
def test_damaged_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory, seed, suffix, near_start, cut):
    file = tmp_path_factory.mktemp("damaged") / f"weights{suffix}"
    weights = PATNet(embed_dim=8, depths=(1,), mixers=("pat_ch",), num_classes=2, feature_dim=4).state_dict()
    if suffix == ".legacy":
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    else:
        write(weights, file)
    content = bytearray(file.read_bytes())
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 20)):
        content[draw.randrange(min(1000, len(content)) if near_start else len(content))] = draw.randrange(256)
    file.write_bytes(content[: draw.randrange(len(content))] if cut else content)
    for read in (read_checkpoint, from_checkpoint):
        with contextlib.suppress(InputError):
            read(file)
            continue
        refusal(read, file)


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_never_runs_code(tmp_path, suffix, form):
    trace, file = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"state_dict": {"a": torch.ones(2)}, "evil": Hostile(trace)}
    if form == "pickle":
        file.write_bytes(pickle.dumps({"evil": Hostile(trace)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    message = read_and_load_refuse(file)
    assert not trace.exists()
    assert "would run code" in message
    assert "system" in message


def test_a_torchscript_program(tmp_path, saved):
    file = tmp_path / "program.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    assert "TorchScript" in read_and_load_refuse(file)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        torch.ones(3),
        7,
        None,
        {},
        {"state_dict": [torch.ones(2)]},
        {"state_dict": {}},
        {"state_dict": {"a": 1}},
        {"model": None},
        {0: torch.ones(2)},
        {"epoch": 3},
        {"state_dict": tiny().state_dict(), "hyper_parameters": {"architecture": "patnet_t0", "model_args": 3}},
    ],
)
def test_wrong_contents(tmp_path, content):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    read_and_load_refuse(file)


def test_a_checkpoint_that_holds_itself(tmp_path):
    content = {}
    content["model"] = content
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    read_and_load_refuse(file)


def test_weights_of_another_architecture(tmp_path):
    for name in ("fasternet_t0", "resnet18"):
        file = write(timm.create_model(name).state_dict(), tmp_path / f"{name}.pth")
        assert "not a PATNet's" in refusal(from_checkpoint, file)
        assert "another architecture" in refusal(load_weights, timm.create_model("patnet_t0"), file)
    t1 = write(timm.create_model("patnet_t1").state_dict(), tmp_path / "t1.pth")
    message = refusal(load_weights, timm.create_model("patnet_t0"), t1)
    assert "another architecture" in message
    assert "(48," in message
    assert "from_checkpoint builds the network that fits it" in message


def test_nothing_is_loaded_where_something_does_not_fit(tmp_path):
    weights = tiny().state_dict()
    del weights["stages.2.blocks.0.mlp.conv2.weight"]
    file = write(weights, tmp_path / "weights.pth")
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert "it lacks stages.2.blocks.0.mlp.conv2.weight" in refusal(load_weights, model, file)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    refusal(from_checkpoint, file)


@pytest.mark.parametrize("shape", [(), (8,), (0, 3, 4, 4), (8, 3)])
def test_impossible_shapes(tmp_path, shape):
    file = write({**tiny().state_dict(), "stem.conv.weight": torch.ones(shape)}, tmp_path / "weights.pth")
    refusal(from_checkpoint, file)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[1, 2]",
        '"text"',
        "null",
        "[" * 100_000,
        b"\xff\xfe\x00",
        {},
        {"architecture": None},
        {"architecture": 5},
        {"architecture": "patnet_xxl"},
        {"architecture": "../elsewhere"},
        {"architecture": "patnet_t0", "model_args": [1]},
        {"architecture": "patnet_t0", "model_args": {"wings": 2}},
        {"architecture": "patnet_t0", "model_args": {"embed_dim": "wide"}},
        {"architecture": "patnet_t0", "model_args": {"embed_dim": -8}},
        {"architecture": "patnet_t0", "model_args": {"act_layer": "sigmund"}},
        {"architecture": "patnet_t0", "model_args": {"depths": 3}},
        {"architecture": "patnet_t0", "pretrained_cfg": "none"},
        {"architecture": "patnet_t0", "num_classes": "many"},
        {"architecture": "patnet_t0"},  # sound, and of another size than the weights
    ],
)
def test_a_broken_config(tmp_path, saved, config):
    (tmp_path / "model.safetensors").write_bytes((saved[1] / "model.safetensors").read_bytes())
    file = tmp_path / "config.json"
    if isinstance(config, bytes):
        file.write_bytes(config)
    else:
        file.write_text(config if isinstance(config, str) else json.dumps(config))
    message = refusal(from_checkpoint, tmp_path)
    assert len(message) < 600


def test_failures_of_the_native_names_are_ours(authors_file):
    assert native_state_dict(PATNet(**TINY).state_dict()).keys() == PATNet(**TINY).state_dict().keys()
    with pytest.raises(InputError, match=r"not a PATNet's: 'stem\.conv\.weight' is missing"):
        infer_arguments({})


def test_a_description_cannot_fetch_other_weights(tmp_path):
    save_checkpoint(timm.create_model("patnet_t0", num_classes=2), tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    config = json.loads(file.read_text())
    config["model_args"] |= {"pretrained": True, "checkpoint_path": str(tmp_path / "other.pth")}
    file.write_text(json.dumps(config))
    assert from_checkpoint(tmp_path / "saved").num_classes == 2
