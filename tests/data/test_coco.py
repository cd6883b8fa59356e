import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patnet import InputError
from patnet.data.coco import read_coco
from patnet.data.detection import DetectionPictures, open_annotations
from patnet.data.masks import encode_mask

WIDTH, HEIGHT = 40, 30


def content(**changes):
    """Two pictures, the second one empty; two categories; a polygon, both kinds of run lengths, and a crowd."""
    block = np.zeros((HEIGHT, WIDTH), np.uint8)
    block[5:15, 8:20] = 1
    runs = [8 * HEIGHT + 5, 10, *([20, 10] * 11), 0]
    runs[-1] = WIDTH * HEIGHT - sum(runs)

    def annotation(i, category, box, segmentation, crowd=0, **others):
        one = {"id": i, "image_id": 7, "category_id": category, "bbox": box, "iscrowd": crowd, **others}
        return {**one, "segmentation": segmentation}

    whole = {
        "images": [
            {"id": 9, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "full.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            annotation(1, 90, [2, 3, 10, 8], [[2, 3, 12, 3, 12, 11, 2, 11]], area=80.0),
            annotation(2, 3, [8, 5, 12, 10], encode_mask(block)),
            annotation(3, 3, [8, 5, 12, 10], {"size": [HEIGHT, WIDTH], "counts": runs}, crowd=1),
        ],
        "categories": [{"id": 90, "name": "late"}, {"id": 3, "name": "early"}],
    }
    return {**whole, **changes}


def written(folder: Path, what, pictures=("full.png", "empty.png")) -> Path:
    """COCO's folders: `annotations/instances_val2017.json` and `val2017/`."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    for name in pictures:
        Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 30)).save(folder / "val2017" / name)
    file = folder / "annotations" / "instances_val2017.json"
    file.write_text(what if isinstance(what, str) else json.dumps(what))
    return file


def test_coco_as_it_unpacks(tmp_path):
    file = written(tmp_path, content())
    for source, split in ((file, None), (tmp_path, None), (tmp_path, "val2017"), (tmp_path, "val")):
        found = open_annotations(source, split=split)
        assert found.class_names == ["early", "late"]
        assert found.category_ids == [3, 90]
        assert [p.id for p in found.pictures] == [7, 9]
    pictures = DetectionPictures(found)
    assert len(pictures) == 2
    image, target = pictures[0]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image[:, 0, 0].tolist() == [10, 200, 30]
    assert target["labels"].tolist() == [2, 1, 1]
    assert target["boxes"].tolist() == [[2, 3, 12, 11], [8, 5, 20, 15], [8, 5, 20, 15]]
    assert target["area"].tolist() == [80, 120, 120]
    assert target["iscrowd"].tolist() == [0, 0, 1]
    assert target["image_id"] == 7
    assert target["masks"].shape == (3, HEIGHT, WIDTH)
    assert torch.equal(target["masks"][1], target["masks"][2])
    assert target["masks"][1, 5:15, 8:20].all()
    assert target["masks"].sum((1, 2)).tolist()[1:] == [120, 120]
    assert DetectionPictures(found, crowd=False)[0][1]["labels"].tolist() == [2, 1]


def test_a_picture_without_objects_has_empty_targets(tmp_path):
    _, target = DetectionPictures(open_annotations(written(tmp_path, content())))[1]
    assert target["boxes"].shape == (0, 4)
    assert target["masks"].shape == (0, HEIGHT, WIDTH)
    assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (0,)
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64


def test_boxes_alone_need_no_masks(tmp_path):
    what = content()
    what["annotations"][0]["segmentation"] = []
    found = open_annotations(written(tmp_path, what))
    assert "masks" not in DetectionPictures(found)[0][1]
    with pytest.raises(InputError, match=r"full\.png has no mask"):
        DetectionPictures(found, masks=True)


def test_a_box_is_cut_to_its_picture_by_a_fraction(tmp_path):
    what = content()
    what["annotations"][0]["bbox"] = [-0.4, 20, 40.9, 10.3]
    assert open_annotations(written(tmp_path, what)).pictures[0].objects[0].box == (0, 20, WIDTH, HEIGHT)


def test_a_turned_picture_fits_what_was_annotated(tmp_path):
    file = written(tmp_path, content())
    stored = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for orientation in (5, 6, 7, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(tmp_path / "val2017" / "full.png", exif=exif)
        seen = DetectionPictures(open_annotations(file)).picture(0)
        assert np.array_equal(np.asarray(seen), stored)
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "val2017" / "full.png")
    with pytest.raises(InputError, match=r"full\.png: is 30x40 px, but its annotations say 40x30"):
        DetectionPictures(open_annotations(file)).picture(0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [5, 5, 0, 4]}, "no area"),
        ({"bbox": [5, 5, 4, -3]}, "comes before"),
        ({"bbox": [50, 5, 4, 3]}, "outside its picture"),
        ({"bbox": [30, 5, 14, 3]}, "outside its picture"),
        ({"bbox": [5, 5, 4]}, "not four numbers"),
        ({"bbox": [5, 5, 4, None]}, "not four numbers"),
        ({"bbox": [5, 5, 4, float("nan")]}, "not four numbers"),
        ({"segmentation": [[1, 1, 90, 1, 5, 5]]}, "outside its picture"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "another size"),
        ({"image_id": 1000}, "picture that the file does not name"),
        ({"category_id": 1000}, "category that the file does not name"),
    ],
)
def test_what_is_wrong_is_passed_over_up_to_a_share(tmp_path, change, kind):
    what = content()
    good = what["annotations"][0]
    what["annotations"] = [good] * 150 + [{**good, **change}]
    file = written(tmp_path, what)
    found = open_annotations(file)
    assert len(found.faults) == 1
    assert kind in found.faults[0].kind
    assert "annotations[150]" in str(found.faults[0])
    assert len(found.pictures[0].objects) == 150
    with pytest.raises(InputError, match=r"1 of 151 annotations.*annotations\[150\]"):
        open_annotations(file, max_faults=0)
    what["annotations"] = [good, {**good, **change}]
    with pytest.raises(InputError, match=f"1 with .*{kind}"):
        open_annotations(written(tmp_path, what))


def test_missing_pictures_count_with_their_annotations(tmp_path):
    file = written(tmp_path, content(), pictures=["empty.png"])
    with pytest.raises(InputError, match=r"3 of 3 annotations.*missing.*full\.png"):
        open_annotations(file)
    found = open_annotations(file, max_faults=1)
    assert [p.path.name for p in found.pictures] == ["empty.png"]
    with pytest.raises(InputError, match=r"none of its 2 pictures is there, such as .*; give their folder"):
        open_annotations(written(tmp_path / "none", content(), pictures=[]))


def one(key, **fields):
    rows = content()[key]
    return {key: [{**rows[0], **fields}, *rows[1:]]}


def without(key, name):
    rows = content()[key]
    return {key: [{k: v for k, v in row.items() if k != name} for row in rows]}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "fields images, annotations and categories are missing"),
        ({"images": []}, "the field annotations is missing"),
        (content(categories={}), "the field categories is not a list"),
        (content(categories=[]), "the field categories is empty"),
        (content(annotations=[[]]), r"annotations\[0\] is no object"),
        (content(**without("annotations", "bbox")), r"annotations\[0\]\.bbox is missing"),
        (content(**without("annotations", "category_id")), r"annotations\[0\]\.category_id is missing"),
        (content(**one("annotations", image_id="7")), r"annotations\[0\]\.image_id is not a whole number"),
        (content(**without("images", "width")), r"images\[0\]\.width is missing"),
        (content(**one("images", id="a")), r"images\[0\]\.id is not a whole number"),
        (content(**one("images", id=7)), r"images\[1\]\.id is 7, as is images\[0\]\.id"),
        (content(**one("images", height=0)), r"images\[0\] is 40x0 px"),
        (content(**one("images", file_name=3)), r"images\[0\]\.file_name is not text"),
        (content(**one("categories", name=None)), r"categories\[0\]\.name is not text"),
        (content(**one("categories", id=3)), r"categories\[1\]\.id is 3"),
        (content(images=[], annotations=[]), "names no pictures"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_by_its_field(tmp_path, what, said):
    with pytest.raises(InputError, match=said) as raised:
        open_annotations(written(tmp_path, what))
    assert "\n" not in str(raised.value)


def test_what_cannot_be_found_is_named(tmp_path):
    file = written(tmp_path, content())
    for source, images, split, said in (
        (tmp_path / "nowhere", None, None, "no such file or folder"),
        (file, tmp_path / "nowhere", None, "--images .*no such folder"),
        (file, None, "val", "leave one of them out"),
        (tmp_path, None, "train", r"no one split 'train' .*val2017"),
        (tmp_path / "val2017", None, None, "holds no annotations"),
    ):
        with pytest.raises(InputError, match=said):
            open_annotations(source, images, split=split)
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(InputError, match="has the splits train2017, val2017; give one"):
        open_annotations(tmp_path)


@st.composite
def objects(draw):
    x, y = draw(st.floats(0, WIDTH - 3)), draw(st.floats(0, HEIGHT - 3))
    width, height = draw(st.floats(1, WIDTH - x)), draw(st.floats(1, HEIGHT - y))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = 1
    segmentation = draw(
        st.sampled_from([[[x, y, x + width, y, x + width, y + height]], encode_mask(mask), encode_mask(1 - mask)])
    )
    return {
        "image_id": draw(st.sampled_from([7, 9])),
        "category_id": draw(st.sampled_from([3, 90])),
        "bbox": [x, y, width, height],
        "segmentation": segmentation,
        "iscrowd": draw(st.integers(0, 1)),
    }


@settings(max_examples=30)
@given(annotations=st.lists(objects(), max_size=8))
def test_annotations_survive_a_round_trip(tmp_path_factory, annotations):
    folder = tmp_path_factory.mktemp("round")
    numbered = [{"id": i, **one} for i, one in enumerate(annotations)]
    first = read_coco(written(folder, content(annotations=numbered)))
    assert first.faults == []
    assert sum(len(p.objects) for p in first.pictures) == len(annotations)
    second = read_coco(written(folder, first.as_coco()))
    assert second.categories == first.categories
    one, other = DetectionPictures(first), DetectionPictures(second)
    for i in range(2):
        a, b = one.target(i), other.target(i)
        assert torch.allclose(a.pop("boxes"), b.pop("boxes"), atol=1e-4)
        assert torch.allclose(a.pop("area"), b.pop("area"))
        assert a.pop("image_id") == b.pop("image_id")
        assert all(torch.equal(a[key], b[key]) for key in a)
