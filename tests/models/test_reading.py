import argparse
import functools
import json
import os
import pickle
import random

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet import InputError, PATNet, load_weights
from patnet.models import UnsafeCheckpoint, load_checkpoint, read_checkpoint, read_tensors
from patnet.models.keys import is_authors, native_state_dict

T0 = {"architecture": "patnet_t0"}
SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": 4, "feature_dim": 64, "num_classes": 10}


def refusal(call, *args):
    """The `InputError` that `call` raises: its message is one line that names the file."""
    with pytest.raises(InputError) as raised:
        call(*args)
    message = str(raised.value)
    assert str(args[-1]) in message
    assert "\n" not in message
    assert message == message.strip()
    assert len(message) < 600
    return raised.value


@pytest.fixture(scope="module")
def both_refuse(tiny):
    """The error message of `load_checkpoint` and `load_weights`, which must be the same."""

    def check(file):
        message = str(refusal(load_checkpoint, file))
        assert str(refusal(load_weights, tiny(), file)) == message
        return message

    return check


def test_the_authors_names_become_ours(authors_file):
    reference = safetensors.torch.load_file(authors_file)
    weights = {key.removeprefix("weights."): v for key, v in reference.items() if key.startswith("weights.")}
    assert is_authors(weights)
    own = PATNet(**SMALL).state_dict()
    assert {k: v.shape for k, v in native_state_dict(weights).items()} == {k: v.shape for k, v in own.items()}
    assert native_state_dict(own).keys() == own.keys()
    weights["norm4.weight"] = torch.ones(64)
    assert "output_norms.2.weight" in native_state_dict(weights)


@functools.cache
def weights_of(name):
    return timm.create_model(name, device="meta").state_dict()


@settings(max_examples=20)
@given(
    wrappers=st.lists(st.sampled_from(["state_dict", "model", "state_dict_ema"]), max_size=2),
    prefixes=st.lists(st.sampled_from(["model.", "module.", "_orig_mod."]), max_size=3),
    name=st.sampled_from(["patnet_t0", "fasternet_t0", "resnet18", "vit_tiny_patch16_224"]),
)
def test_wrappers_and_prefixes_come_off(wrappers, prefixes, name):
    weights = weights_of(name)
    checkpoint = {"".join(prefixes) + key: value for key, value in weights.items()}
    for wrapper in wrappers:
        checkpoint = {"epoch": 3, wrapper: checkpoint, "optimizer": {"state": {}}}
    assert native_state_dict(checkpoint).keys() == weights.keys()


@pytest.mark.parametrize("extra", [{"loss.weight": torch.ones(3)}, {3: torch.ones(3)}, {"epoch": 7}])
def test_other_entries_do_not_disturb(extra):
    weights = {"model." + key: value for key, value in PATNet(**SMALL).state_dict().items()}
    assert native_state_dict(weights | extra).keys() == PATNet(**SMALL).state_dict().keys()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_of_timms_training(tmp_path, saved, tiny, zipped):
    options = argparse.Namespace(model="patnet_t0", lr=0.1, aa=None, mean=(0.5, 0.5))
    file = tmp_path / "last.pth.tar"
    content = {"epoch": 3, "arch": "patnet_t0", "state_dict": saved[0].state_dict(), "args": options}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    model = tiny()
    assert load_weights(model, file) == []
    torch.testing.assert_close(model.state_dict(), saved[0].state_dict())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_directory_without_weights(tmp_path, both_refuse):
    assert "has no model.safetensors" in both_refuse(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1")
    assert "has not finished an epoch" in both_refuse(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_missing_damaged_and_incomplete_files(tmp_path, saved, write, both_refuse, suffix):
    file = tmp_path / f"weights{suffix}"
    assert "no such checkpoint" in both_refuse(file)
    complete = write(saved[0].state_dict(), file).read_bytes()
    parts = [complete[: int(share * len(complete))] for share in (0.001, 0.5, 0.999)]
    for content in (b"", b"\0", b"hello, this is a text\n" * 20, b"\x80\x02", b"PK\x03\x04" + bytes(50), *parts):
        file.write_bytes(content)
        assert "damaged" in both_refuse(file)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    suffix=st.sampled_from([".safetensors", ".pth", ".legacy"]),
    near_start=st.booleans(),
    cut=st.booleans(),
)
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, write, seed, suffix, near_start, cut):
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
    for read in (read_checkpoint, load_checkpoint):
        try:
            read(file)
        except InputError:
            refusal(read, file)


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_pickle_never_runs_code_and_differs_from_a_damaged_file_by_type(tmp_path, both_refuse, suffix, form):
    trace, file = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"state_dict": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.1), "evil": Hostile(trace)}
    if form.startswith("pickle"):
        file.write_bytes(pickle.dumps({"evil": Hostile(trace)}, protocol=int(form[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    message = both_refuse(file)
    assert not trace.exists()
    assert "would run code" in message
    assert "system" in message
    assert isinstance(refusal(read_tensors, file), UnsafeCheckpoint)
    file.write_bytes(b"damaged")
    assert type(refusal(read_tensors, file)) is InputError


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
        {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": T0 | {"model_args": 3}},
    ],
)
def test_wrong_contents(tmp_path, both_refuse, content):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    both_refuse(file)


def test_programs_and_checkpoints_that_contain_themselves(tmp_path, both_refuse):
    file = tmp_path / "weights.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    assert "TorchScript" in both_refuse(file)
    content = {}
    content["model"] = content
    torch.save(content, file)
    assert "contains itself" in both_refuse(file)


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
        {"architecture": None},
        {"architecture": 5},
        {"architecture": "patnet_xxl"},
        {"architecture": "../elsewhere"},
        T0 | {"model_args": [1]},
        T0 | {"model_args": {"wings": 2}},
        T0 | {"model_args": {"embed_dim": "wide"}},
        T0 | {"model_args": {"embed_dim": -8}},
        T0 | {"model_args": {"act_layer": "sigmund"}},
        T0 | {"model_args": {"depths": 3}},
        T0 | {"pretrained_cfg": "none"},
        T0 | {"num_classes": "many"},
        T0,  # correct, and of another size than the weights
        {"task": "detection", "category_ids": [1]},
        {"num_classes": 3},
    ],
)
def test_a_wrong_config(tmp_path, saved, config):
    (tmp_path / "model.safetensors").write_bytes((saved[1] / "model.safetensors").read_bytes())
    text = config if isinstance(config, str | bytes) else json.dumps(config)
    (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    message = str(refusal(load_checkpoint, tmp_path))
    assert ("holds a detector" in message) == (isinstance(config, dict) and "task" in config)
