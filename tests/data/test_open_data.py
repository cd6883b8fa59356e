import pytest

from patnet import InputError
from patnet.data import open_data


def test_class_folders_are_split_by_the_seed(photos):
    splits = open_data(str(photos(a=10, b=20)), val_fraction=0.2)
    assert splits.class_names == ["a", "b"]
    assert (len(splits.train), len(splits.val), splits.test) == (24, 6, None)
    assert sum(label == 0 for _, label in splits.val.samples) == 2


def test_given_splits_are_kept(photos):
    root = photos(**{"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 2, "test/b": 4})
    splits = open_data(str(root))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 3, 4]
    assert {label for _, label in splits.test.samples} == {1}


def test_validation_is_split_off_where_only_a_test_exists(photos):
    splits = open_data(str(photos(**{"train/a": 10, "train/b": 10, "test/a": 1})), val_fraction=0.2)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [16, 4, 1]


def test_a_data_set_of_timms(photos):
    root = photos(**{"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 2})
    splits = open_data("torch/image_folder", data_root=str(root / "train"))
    assert splits.class_names == ["a", "b"]
    assert len(splits.train) == 6


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({}, "absent/folder", "no such folder"),
        ({}, "elpw", "did you mean 'elpv'"),
        ({}, ".", "holds no class folders"),
        ({"a": 2, "b": 0}, ".", "b: the class has no pictures"),
        ({"train/a": 2, "val/a": 1, "val/c": 1}, ".", "c: train/ has no class"),
        ({"val/a": 1}, ".", "no train/"),
        ({"train/a": 2, "val/a": 0}, ".", "the class has no pictures"),
        ({}, "torch/nothing_such", "timm cannot open it"),
    ],
)
def test_bad_folders_are_named(photos, monkeypatch, files, data, message):
    monkeypatch.chdir(photos(**files))
    with pytest.raises(InputError, match=message) as raised:
        open_data(data)
    assert "\n" not in str(raised.value)


def test_bad_options():
    with pytest.raises(InputError, match="grey"):
        open_data("elpv", in_chans=2)
    with pytest.raises(InputError, match="val_fraction"):
        open_data("elpv", val_fraction=1)
    with pytest.raises(InputError, match="only built-in"):
        open_data("photos", cache_size=32)
