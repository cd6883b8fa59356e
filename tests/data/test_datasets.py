from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patnet import InputError
from patnet.data import DATA_SETS, DataSplits, open_data, open_split, stratified_split
from patnet.data.datasets import _class_names
from patnet.train import TrainConfig, train
from patnet.train.evaluate import summarise


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=200), fraction=st.floats(0, 0.99), seed=st.integers(0))
def test_every_label_gives_its_share(labels, fraction, seed):
    large, small = stratified_split(labels, fraction, seed)
    assert (large, small) == stratified_split(labels, fraction, seed)
    assert sorted(large + small) == list(range(len(labels)))
    assert {labels[i] for i in large} == set(labels)  # for which a label may keep its last image
    kept = sum(labels.count(label) == 1 + sum(labels[i] == label for i in small) for label in set(labels))
    assert round(fraction * len(labels)) - kept <= len(small) <= round(fraction * len(labels))
    taken = Counter(labels[i] for i in small)
    for label, count in Counter(labels).items():
        assert abs(taken[label] - fraction * count) <= 2
    assert stratified_split([0, 1] * 50, 0.3, seed) != stratified_split([0, 1] * 50, 0.3, seed + 1)


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ({"a": 10, "b": 20}, (24, 6, None)),
        ({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 2, "test/b": 4}, (6, 3, 4)),
        ({"train/a": 3, "train/b": 3, "validation/a": 1}, (6, 1, None)),
        ({"train/a": 3, "train/b": 3, "valid/a": 1}, (6, 1, None)),
        ({"train/a": 10, "train/b": 10, "test/a": 1}, (16, 4, 1)),
    ],
)
def test_class_folders(images_dir, counts, sizes):
    splits = open_data(str(images_dir(**counts)), val_fraction=0.2)
    assert splits.class_names == ["a", "b"]
    assert tuple(part and len(part) for part in (splits.train, splits.val, splits.test)) == sizes
    for part in filter(None, (splits.train, splits.val, splits.test)):
        for (image, label), (path, _) in zip(part, part.samples, strict=True):
            assert (image.mode, splits.class_names[label]) == ("RGB", path.parent.name)


def test_data_sets_of_timm(images_dir):
    root = str(images_dir(a=3, b=3))
    splits, split = (open_("torch/image_folder", data_root=root) for open_ in (open_data, open_split))
    assert (splits.class_names, len(splits.train), len(split)) == (["a", "b"], 6, 6)
    options = {"data_root": root, "img_size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "accelerator": "cpu"}
    tiny = {"embed_dim": 8, "depths": (1,), "mixers": ("pat_ch",), "feature_dim": 16}
    out = Path(root) / "run"
    train(TrainConfig(data="torch/image_folder", out=str(out), warmup_epochs=0, model_kwargs=tiny, **options))
    assert (out / "checkpoints" / "last.ckpt").is_file()


def test_classes_with_synonyms_and_of_one_name():
    imagenet = type("ImageNet", (), {"classes": [("tench", "Tinca tinca"), ("crane",), ("crane",)]})()
    imagenet.class_to_idx = {"tench": 0, "Tinca tinca": 0, "crane": 2}
    assert _class_names(imagenet, "torch/imagenet", None) == ["tench, Tinca tinca", "crane (1)", "crane (2)"]
    assert _class_names(type("Few", (), {"class_to_idx": {"b": 1, "a": 0}})(), "few", None) == ["a", "b"]
    result = summarise(torch.eye(3), torch.arange(3), ["crane", "dog", "crane"])
    assert list(result["per_class"]) == ["crane (0)", "dog", "crane (2)"]


def test_a_split_is_opened_by_name(images_dir):
    root = str(images_dir(**{"train/a": 3, "train/b": 3, "val/a": 1, "test/b": 4}))
    assert [len(open_split(root, split)) for split in (None, "train", "val", "test")] == [4, 6, 1, 4]
    with pytest.raises(InputError, match=r"--split other: .* has test, val, train"):
        open_split(root, "other")


def test_a_data_set_is_one_entry(monkeypatch):
    monkeypatch.setitem(DATA_SETS, "toy", lambda mode, **_: DataSplits(["a", "b"], [mode], None))
    assert open_data("toy", in_chans=1).train == ["L"]


@pytest.mark.parametrize(
    ("counts", "data", "options", "message"),
    [
        ({}, "absent/folder", {}, "no such folder"),
        ({}, "elpw", {}, "did you mean 'elpv'"),
        ({}, ".", {}, "holds no class folders"),
        ({"a": 2, "b": 0}, ".", {}, "b: the class has no images"),
        ({"train/a": 2, "val/a": 1, "val/c": 1}, ".", {}, "c: train/ has no class"),
        ({"val/a": 1}, ".", {}, "no train/"),
        ({"train/a": 2, "val/a": 0}, ".", {}, "the class has no images"),
        ({}, "torch/nothing_such", {}, "timm cannot open it"),
        ({}, "elpv", {"in_chans": 2}, "--in-chans 2"),
        ({}, "elpv", {"val_fraction": 1}, "--val-fraction 1"),
        ({}, "images", {"cache_size": 32}, "--cache-size: only built-in"),
    ],
)
def test_what_cannot_be_opened_is_named(images_dir, monkeypatch, counts, data, options, message):
    root = images_dir(**counts)
    root.mkdir(exist_ok=True)
    monkeypatch.chdir(root)
    with pytest.raises(InputError, match=message) as raised:
        open_data(data, **options)
    assert "\n" not in str(raised.value)
