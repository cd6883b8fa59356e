from collections import Counter

import numpy as np
import pytest
from PIL import Image

from patnet import InputError
from patnet.data import open_data
from patnet.data.elpv import MEAN, STD, cells


def test_the_split_is_the_published_size_and_stratified():
    everything = cells()
    assert len(everything) == 2624
    tested = [cell for cell in everything if cell.test]
    assert len(tested) == 656
    of_stratum = Counter((cell.level, cell.module) for cell in everything)
    tested_of = Counter((cell.level, cell.module) for cell in tested)
    for stratum, count in of_stratum.items():
        assert abs(tested_of[stratum] - count / 4) < 1


def test_two_classes_and_four_levels():
    splits = open_data("elpv")
    assert splits.class_names == ["functional", "defective"]
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [1771, 197, 656]
    files = [{path for path, _ in part.samples} for part in parts]
    assert len(files[0] | files[1] | files[2]) == 2624
    labels = [label for part in parts for _, label in part.samples]
    assert sum(labels) == 821
    levels = open_data("elpv-levels", val_fraction=0)
    assert levels.val is None
    counts = Counter(label for part in (levels.train, levels.test) for _, label in part.samples)
    assert [counts[level] for level in range(4)] == [1508, 295, 106, 715]


def test_brightness_is_that_of_the_training_cells():
    pixels = [np.asarray(Image.open(cell.path)) / 255 for cell in cells() if not cell.test][::7]
    assert abs(np.mean(pixels) - MEAN) < 0.01
    assert abs(np.std(pixels) - STD) < 0.01


def test_the_cache_holds_the_same_cells(tmp_path):
    cached = open_data("elpv", in_chans=1, cache_size=16, cache_dir=tmp_path)
    plain = open_data("elpv", in_chans=1)
    for split in ("train", "val", "test"):
        a, b = getattr(cached, split), getattr(plain, split)
        assert a.samples == b.samples
        reduced = b.picture(3).resize((16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(a.picture(3)), np.asarray(reduced))
    assert [file.name for file in tmp_path.iterdir()] == ["elpv-16.npz"]
    assert open_data("elpv", cache_size=16, cache_dir=tmp_path).train.picture(0).mode == "RGB"


def test_a_damaged_cache_is_named(tmp_path):
    open_data("elpv", cache_size=8, cache_dir=tmp_path)
    file = tmp_path / "elpv-8.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"damaged", whole[:9], whole[3:], whole[:-2000], whole[:5000] + bytes(100) + whole[5100:]):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"elpv-8\.npz.*damaged"):
            open_data("elpv", cache_size=8, cache_dir=tmp_path)


def test_the_cache_is_small_enough_to_travel(tmp_path):
    open_data("elpv", cache_size=128, cache_dir=tmp_path)
    assert (tmp_path / "elpv-128.npz").stat().st_size < 40e6


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("patnet.data.elpv.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        open_data("elpv")
