from collections import Counter

import numpy as np
import pytest
from PIL import Image

from patnet import InputError, errors
from patnet.data import ABOUT, open_data
from patnet.data.elpv import MEAN, STD, solar_cells


def test_the_split_is_the_published_size_and_stratified():
    cells = solar_cells()
    assert (len(cells), sum(cell.test for cell in cells)) == (2624, 656)
    strata = Counter((cell.level, cell.module) for cell in cells)
    tested = Counter((cell.level, cell.module) for cell in cells if cell.test)
    assert all(abs(tested[stratum] - count / 4) < 1 for stratum, count in strata.items())
    assert f"{sum(cell.doubtful for cell in cells)} of the 2 624" in ABOUT["elpv"].limits


def test_two_classes_and_four_levels():
    splits = open_data("elpv")
    assert splits.class_names == ["functional", "defective"]
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [1771, 197, 656]
    assert len({path for part in parts for path, _ in part.samples}) == 2624
    assert sum(sum(part.labels) for part in parts) == 821
    levels = open_data("elpv-levels", val_fraction=0)
    assert levels.val is None
    counts = Counter(levels.train.labels + levels.test.labels)
    assert [counts[level] for level in range(4)] == [1508, 295, 106, 715]


def test_brightness_is_that_of_the_training_cells():
    training = [cell for cell in solar_cells() if not cell.test]
    pixels = [np.asarray(Image.open(cell.path)) / 255 for cell in training[::7]]
    assert abs(np.mean(pixels) - MEAN) < 0.01
    assert abs(np.std(pixels) - STD) < 0.01


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the cache at 16 px."""
    folder = tmp_path_factory.mktemp("cache")
    open_data("elpv", cache_size=16, cache_dir=folder)
    return folder


def test_the_cache_holds_the_same_images(cache):
    cached = open_data("elpv", in_chans=1, cache_size=16, cache_dir=cache)
    files = open_data("elpv", in_chans=1)
    for split in ("train", "val", "test"):
        a, b = getattr(cached, split), getattr(files, split)
        assert a.samples == b.samples
        resized = b[3][0].resize((16, 16), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(a[3][0]), np.asarray(resized))
        assert a[3][1] == b[3][1]
    assert [file.name for file in cache.iterdir()] == ["elpv-16.npz"]
    assert open_data("elpv", cache_size=16, cache_dir=cache).train[0][0].mode == "RGB"


def test_a_damaged_cache_is_named(cache, tmp_path):
    content = (cache / "elpv-16.npz").read_bytes()
    for damaged in (b"", b"damaged", content[:9], content[3:], content[:-2000], content[:5000] + bytes(100)):
        (tmp_path / "elpv-16.npz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"elpv-16\.npz: the cache is damaged"):
            open_data("elpv", cache_size=16, cache_dir=tmp_path)
    (tmp_path / "elpv-8.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"the cache holds \(2624, 16, 16\)"):
        open_data("elpv", cache_size=8, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"cannot be written .*choose another --cache-dir"):
        open_data("elpv", cache_size=8, cache_dir=tmp_path / "elpv-8.npz" / "below")


@pytest.mark.slow
def test_the_cache_is_small_enough_to_copy_to_another_machine(tmp_path):
    open_data("elpv", cache_size=128, cache_dir=tmp_path)
    assert (tmp_path / "elpv-128.npz").stat().st_size < 40e6


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'patnet\\[elpv\\]'"):
        open_data("elpv")
