import re

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from hypothesis import given
from hypothesis import strategies as st

from patnet import InputError, errors
from patnet.data import masks
from patnet.data.masks import decode_mask, encode_mask, mask_area, mask_box, mask_problem


@st.composite
def pixels(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    coarse = np.random.default_rng(draw(st.integers(0, 10**6))).random((-(-height // 5), -(-width // 5)))
    return np.kron(coarse < draw(st.floats(0, 1)), np.ones((5, 5)))[:height, :width].astype(np.uint8)


def runs_of(mask):
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat))])).tolist()


@given(mask=pixels())
def test_both_forms_of_run_lengths_give_the_mask(mask):
    height, width = mask.shape
    compressed, runs = encode_mask(mask), {"size": [height, width], "counts": runs_of(mask)}
    for segmentation in (compressed, runs):
        assert mask_problem(segmentation, height, width) is None
        assert np.array_equal(decode_mask(segmentation, height, width), mask)
        assert mask_area(segmentation, height, width) == mask.sum()
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask_box(runs, height, width) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_polygons_are_one_mask():
    polygons = [[2, 2, 12, 2.5, 12, 9], [20.5, 3, 27, 3, 27, 14.2, 20, 14]]
    expected = np.stack([coco_mask.decode(one) for one in coco_mask.frPyObjects(polygons, 16, 30)]).max(0)
    assert mask_problem(polygons, 16, 30) is None
    assert np.array_equal(decode_mask(polygons, 16, 30), expected)
    assert expected.sum() > 100


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 1, 5, 5]], "three points"),
        ([[1, 1, 5, 5, 3, 8, 2]], "three points"),
        ([[]], "three points"),
        (["text"], "three points"),
        ([[1, 1, 5, 5, 3, float("nan")]], "something else than numbers"),
        ([[1, 1, 5, 5, 3, None]], "something else than numbers"),
        ([[1, 1, 50, 5, 3, 8]], "outside its image of 20x10"),
        ("text", "neither polygons nor run lengths"),
        ({"counts": [200]}, "neither polygons nor run lengths"),
        ({"counts": [200], "size": 10}, "not \\[height, width\\]"),
        ({"counts": [200], "size": [20, 10]}, "another size than its image: 10x20 px for 20x10 px"),
        ({"counts": [100, 50], "size": [10, 20]}, "damaged: .*150 pixels"),
        ({"counts": [300, -100], "size": [10, 20]}, "integers"),
        ({"counts": [100.0, 100], "size": [10, 20]}, "integers"),
        ({"counts": "T2", "size": [10, 20]}, "damaged: .*68 pixels"),
        ({"counts": "~ö", "size": [10, 20]}, "damaged"),
        ({"counts": "P", "size": [10, 20]}, "early end"),
        ({"counts": None, "size": [10, 20]}, "neither polygons nor run lengths"),
    ],
)
def test_problems_of_a_mask_are_named(segmentation, problem):
    assert re.search(problem, mask_problem(segmentation, 10, 20) or "")


@given(text=st.text(max_size=12), height=st.integers(1, 6), width=st.integers(1, 6))
def test_a_string_without_problems_can_be_decoded(text, height, width):
    segmentation = {"size": [height, width], "counts": text}
    if mask_problem(segmentation, height, width) is None:
        assert decode_mask(segmentation, height, width).shape == (height, width)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    masks._library.cache_clear()
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'patnet\[detection\]'"):
        decode_mask({"size": [1, 1], "counts": [1]}, 1, 1)
