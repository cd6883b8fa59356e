"""Annotations in COCO's and Pascal VOC's formats, and the data set of images and targets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patnet import InputError
from patnet.data import DetectionDataset, open_annotations
from patnet.data.batches import AspectRatioBatches, Batches
from patnet.data.coco import read_coco
from patnet.data.detection import detection_transform, read_annotated_image
from patnet.data.loading import SeededDataset, TrainLoader, eval_loader
from patnet.data.masks import encode_mask

WIDTH, HEIGHT = 40, 30


def content(**changes):
    """Two images, the second one empty; two categories; a polygon, both forms of run lengths, and a crowd."""
    block = np.zeros((HEIGHT, WIDTH), np.uint8)
    block[5:15, 8:20] = 1
    runs = [8 * HEIGHT + 5, 10, *([20, 10] * 11), 0]
    runs[-1] = WIDTH * HEIGHT - sum(runs)
    masks = [[2, 3, 12, 3, 12, 11, 2, 11]], encode_mask(block), {"size": [HEIGHT, WIDTH], "counts": runs}
    boxes, classes = ([2, 3, 10, 8], [8, 5, 12, 10], [8, 5, 12, 10]), (90, 3, 3)
    return {
        "images": [
            {"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
            for i, name in ((9, "empty"), (7, "full"))
        ],
        "annotations": [
            {"image_id": 7, "category_id": category, "bbox": box, "iscrowd": crowd, "segmentation": mask, "area": area}
            for category, box, crowd, mask, area in zip(classes, boxes, (0, 0, 1), masks, (81, None, None), strict=True)
        ],
        "categories": [{"id": 90, "name": "late"}, {"id": 3, "name": "early"}],
    } | changes


def write(folder: Path, what, images=("full.png", "empty.png")) -> Path:
    """COCO's folders: `annotations/instances_val2017.json` and `val2017/`."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    for name in images:
        Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 30)).save(folder / "val2017" / name)
    file = folder / "annotations" / "instances_val2017.json"
    file.write_text(what if isinstance(what, str) else json.dumps(what))
    return file


def test_coco_as_it_unpacks(tmp_path):
    file = write(tmp_path, content())
    for source, split in ((file, None), (tmp_path, None), (tmp_path, "val2017"), (tmp_path, "val")):
        found = open_annotations(source, split=split)
        assert (found.class_names, found.category_ids) == (["early", "late"], [3, 90])
        assert [image.id for image in found.images] == [7, 9]
    (image, target), (_, empty) = DetectionDataset(found)
    assert (image.size, image.getpixel((0, 0))) == ((WIDTH, HEIGHT), (10, 200, 30))
    masks = target.pop("masks")
    assert {key: value if key == "image_id" else value.tolist() for key, value in target.items()} == {
        "boxes": [[2, 3, 12, 11], [8, 5, 20, 15], [8, 5, 20, 15]],
        "labels": [2, 1, 1],
        "image_id": 7,
        "area": [81, 120, 120],
        "iscrowd": [0, 0, 1],
    }
    assert torch.equal(masks[1], masks[2])
    assert masks[1, 5:15, 8:20].all()
    assert masks.sum((1, 2)).tolist()[1:] == [120, 120]
    assert DetectionDataset(found, crowd=False)[0][1]["labels"].tolist() == [2, 1]
    assert (empty["boxes"].shape, empty["masks"].shape) == ((0, 4), (0, HEIGHT, WIDTH))
    assert empty["labels"].shape == empty["area"].shape == empty["iscrowd"].shape == (0,)
    assert (empty["boxes"].dtype, empty["labels"].dtype) == (torch.float32, torch.int64)


def test_boxes_alone_need_no_masks_and_are_clipped_to_their_image(tmp_path):
    what = content()
    what["annotations"][0] |= {"segmentation": [], "bbox": [-0.4, 20, 40.9, 10.3]}
    found = open_annotations(write(tmp_path, what))
    assert found.images[0].objects[0].box == (0, 20, WIDTH, HEIGHT)
    assert "masks" not in DetectionDataset(found)[0][1]
    with pytest.raises(InputError, match=r"full\.png has no mask"):
        DetectionDataset(found, masks=True)


def test_a_rotated_image_fits_what_was_annotated(tmp_path):
    found = open_annotations(write(tmp_path, content()))
    stored = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for orientation in (5, 6, 7, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(tmp_path / "val2017" / "full.png", exif=exif)
        assert np.array_equal(np.asarray(read_annotated_image(found.images[0])), stored)
    Image.new("L", (HEIGHT, WIDTH)).save(tmp_path / "val2017" / "full.png")
    with pytest.raises(InputError, match=r"full\.png: is 30x40 px, but its annotations are for 40x30"):
        read_annotated_image(found.images[0])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bbox": [5, 5, 0, 4]}, "no area"),
        ({"bbox": [30, 5, 1e-6, 4]}, "next to no area"),
        ({"bbox": [5, 5, 4, -3]}, "comes before"),
        ({"bbox": [50, 5, 4, 3]}, "outside its image"),
        ({"bbox": [30, 5, 14, 3]}, "outside its image"),
        ({"bbox": [5, 5, 4]}, "not four numbers"),
        ({"bbox": [5, 5, 4, None]}, "not four numbers"),
        ({"bbox": [5, 5, 4, float("nan")]}, "not four numbers"),
        ({"segmentation": [[1, 1, 90, 1, 5, 5]]}, "outside its image"),
        ({"segmentation": {"size": [3, 4], "counts": [12]}}, "another size"),
        ({"image_id": 1000}, "image that the file does not list"),
        ({"category_id": 1000}, "category that the file does not list"),
    ],
)
def test_invalid_annotations_are_left_out_up_to_a_share(tmp_path, change, problem):
    what = content()
    good = what["annotations"][0]
    what["annotations"] = [good] * 150 + [{**good, **change}]
    file = write(tmp_path, what)
    found = open_annotations(file)
    assert [problem in kind for kind in found.invalid] == [True]
    assert "annotations[150]" in str(found.faults[0])
    assert len(found.images[0].objects) == 150
    with pytest.raises(InputError, match=r"1 of 151 annotations.*annotations\[150\]"):
        open_annotations(file, max_invalid=0)
    what["annotations"] = [good, {**good, **change}]
    with pytest.raises(InputError, match=f"1 with .*{problem}"):
        open_annotations(write(tmp_path, what))


def test_missing_images_count_with_their_annotations(tmp_path):
    file = write(tmp_path, content(), images=["empty.png"])
    with pytest.raises(InputError, match=r"3 of 3 annotations.*missing.*full\.png"):
        open_annotations(file)
    assert [image.path.name for image in open_annotations(file, max_invalid=1).images] == ["empty.png"]
    with pytest.raises(InputError, match=r"none of its 2 images exists, such as .*; give their folder"):
        open_annotations(write(tmp_path / "none", content(), images=[]))


def change(key, **fields):
    rows = content()[key]
    return content(**{key: [{**rows[0], **fields}, *rows[1:]]})


def without(key, name):
    return content(**{key: [{k: v for k, v in row.items() if k != name} for row in content()[key]]})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "fields images, annotations and categories are missing"),
        ({"images": []}, "the field categories is missing"),
        (content(categories={}), "the field categories is not a list"),
        (content(categories=[]), "the field categories is empty"),
        (content(annotations=[[]]), r"annotations\[0\] has no fields"),
        (without("annotations", "bbox"), r"annotations\[0\]\.bbox is missing"),
        (without("annotations", "category_id"), r"annotations\[0\]\.category_id is missing"),
        (change("annotations", image_id="7"), r"annotations\[0\]\.image_id is not an integer"),
        (without("images", "width"), r"images\[0\]\.width is missing"),
        (change("images", id="a"), r"images\[0\]\.id is not an integer"),
        (change("images", id=7), r"images\[1\]\.id is 7, as is images\[0\]\.id"),
        (change("images", height=0), r"images\[0\] is 40x0 px"),
        (change("images", file_name=3), r"images\[0\]\.file_name is not text"),
        (change("categories", name=None), r"categories\[0\]\.name is not text"),
        (change("categories", id=3), r"categories\[1\]\.id is 3"),
        (content(images=[], annotations=[]), "lists no images"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_by_its_field(tmp_path, what, message):
    with pytest.raises(InputError, match=message) as raised:
        open_annotations(write(tmp_path, what))
    assert "\n" not in str(raised.value)


def test_files_and_splits_that_do_not_exist_are_named(tmp_path):
    file = write(tmp_path, content())
    for source, images, split, message in (
        (tmp_path / "nowhere", None, None, "no such file or folder"),
        (file, tmp_path / "nowhere", None, "--images .*no such folder"),
        (file, None, "val", "leave one of them out"),
        (tmp_path, None, "train", r"no one split 'train' .*val2017"),
        (tmp_path / "val2017", None, None, "holds no annotations"),
    ):
        with pytest.raises(InputError, match=message):
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
    forms = [[[x, y, x + width, y, x + width, y + height]], encode_mask(mask), encode_mask(1 - mask)]
    return {
        "image_id": draw(st.sampled_from([7, 9])),
        "category_id": draw(st.sampled_from([3, 90])),
        "bbox": [x, y, width, height],
        "segmentation": draw(st.sampled_from(forms)),
        "iscrowd": draw(st.integers(0, 1)),
    }


@settings(max_examples=30)
@given(annotations=st.lists(objects(), max_size=8))
def test_annotations_survive_a_round_trip(tmp_path_factory, annotations):
    folder = tmp_path_factory.mktemp("round")
    first = read_coco(write(folder, content(annotations=annotations)))
    assert first.faults == []
    assert sum(len(image.objects) for image in first.images) == len(annotations)
    second = read_coco(write(folder, first.as_coco()))
    assert second.categories == first.categories
    one, other = DetectionDataset(first), DetectionDataset(second)
    for i in range(2):
        a, b = one.target(i), other.target(i)
        assert torch.allclose(a.pop("boxes"), b.pop("boxes"), atol=1e-4)
        assert torch.allclose(a.pop("area"), b.pop("area"))
        assert a.pop("image_id") == b.pop("image_id")
        assert all(torch.equal(a[key], b[key]) for key in a)


def xml(name, *objects):
    listed = "".join(
        f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for kind, hard, x1, y1, x2, y2 in objects
    )
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{listed}</annotation>"


@pytest.fixture
def voc(tmp_path):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, objects in {
        "a": [("dog", 0, 1, 1, 10, 20), ("cat", 1, 5, 5, 40, 30)],
        "b": [],
        "c": [("bird", 0, 2, 2, 9, 9)],
    }.items():
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml(f"{name}.jpg", *objects))
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    return tmp_path


def test_folders_of_voc(voc):
    found = open_annotations(voc)
    assert found.class_names == ["bird", "cat", "dog"]
    assert [image.path.name for image in found.images] == ["a.jpg", "b.jpg", "c.jpg"]
    image, target = DetectionDataset(found)[0]
    assert image.size == (40, 30)
    assert target["labels"].tolist() == [3, 2]
    assert target["boxes"].tolist() == [[0, 0, 10, 20], [4, 4, 40, 30]]
    assert target["iscrowd"].tolist() == [0, 1]
    assert "masks" not in target
    split = open_annotations(voc, split="train")
    assert split.class_names == found.class_names
    assert [image.id for image in split.images] == [1, 2]


def test_xml_files_in_the_folder_of_their_images(tmp_path):
    (tmp_path / "one.xml").write_text(xml("one.png", ("screw", 0, 3, 3, 9, 9)))
    Image.new("L", (40, 30)).save(tmp_path / "one.png")
    assert open_annotations(tmp_path).class_names == ["screw"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "a.xml: not an XML file"),
        ("<other/>", "field annotation is missing"),
        (xml("a.jpg", ("", 0, 1, 1, 2, 2)), "field name is missing"),
        (xml("a.jpg", ("dog", 0, "x", 1, 2, 2)), "field bndbox/xmin is 'x', not a number"),
        (xml("a.jpg").replace("width", "breadth"), "field size/width is missing"),
        (xml("a.jpg").replace("40", "nan"), "field size/width is 'nan', not a number of at least 1"),
        (xml("", ("dog", 0, 1, 1, 2, 2)), "field filename is missing"),
        (xml("a.jpg", ("cat", 0, 1, 1, 6, 6), ("dog", 0, 30, 1, 2, 2)), "1 of 3 .*comes before.*object 2 of a.jpg"),
        (xml("a.jpg", ("dog", 0, 1, 1, 60, 20)), "outside its image"),
        (xml("gone.jpg", ("dog", 0, 1, 1, 6, 20)), "missing"),
    ],
)
def test_what_is_wrong_in_voc_is_named(voc, text, message):
    (voc / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        open_annotations(voc)
    assert "\n" not in str(raised.value)


def test_splits_of_voc_are_checked(voc):
    with pytest.raises(InputError, match=r"val\.txt: no such split"):
        open_annotations(voc, split="val")
    (voc / "ImageSets" / "Main" / "val.txt").write_text("z\n")
    with pytest.raises(InputError, match=r"lists z, which has no .*z\.xml"):
        open_annotations(voc, split="val")


def test_names_with_spaces_in_lists_of_voc(voc):
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (voc / folder / f"a.{suffix}").rename(voc / folder / f"solar panel 1.{suffix}")
    file = voc / "Annotations" / "solar panel 1.xml"
    file.write_text(file.read_text().replace("a.jpg", "solar panel 1.jpg"))
    (voc / "ImageSets" / "Main" / "dog_train.txt").write_text("solar panel 1\nc -1\nb  1\n", encoding="utf-8-sig")
    names = [image.path.stem for image in open_annotations(voc, split="dog_train").images]
    assert names == ["b", "c", "solar panel 1"]


def test_voc_without_lists_of_splits_is_for_training(voc):
    shutil.rmtree(voc / "ImageSets")
    assert len(open_annotations(voc, split="train").images) == 3
    with pytest.raises(InputError, match=r"val\.txt: no such split"):
        open_annotations(voc, split="val")


def test_boxes_and_masks_follow_the_image(tmp_path):
    dataset = DetectionDataset(open_annotations(write(tmp_path, content())))
    Image.fromarray(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)).save(
        tmp_path / "val2017" / "full.png"
    )
    image, target = detection_transform()(*dataset[0])
    assert (image.shape, image.dtype, float(image.max())) == ((3, HEIGHT, WIDTH), torch.float32, 1.0)
    flipped, moved = detection_transform(hflip=1.0, vflip=1.0)(*dataset[0])
    assert torch.equal(flipped, image.flip(1, 2))
    assert torch.equal(moved["masks"], target["masks"].flip(1, 2))
    assert moved["boxes"][0].tolist() == [WIDTH - 12, HEIGHT - 11, WIDTH - 2, HEIGHT - 3]


def test_batches_are_lists_in_which_some_images_are_flipped(tmp_path):
    names = [f"{i}.png" for i in range(6)]
    rows = [{"id": i, "file_name": name, "width": 24 + i, "height": 20} for i, name in enumerate(names)]
    one = [{"image_id": i, "category_id": 3, "bbox": [1, 2, 8, 6]} for i in range(6)]
    file = write(tmp_path, content(images=rows, annotations=one))
    for i, name in enumerate(names):
        Image.new("L", (24 + i, 20)).save(tmp_path / "val2017" / name)
    dataset = DetectionDataset(open_annotations(file))
    seeded = SeededDataset(dataset, 3, [(0, detection_transform(hflip=0.5))], joint=True, stack=False)
    loader = TrainLoader(seeded, AspectRatioBatches(dataset.ratios, Batches(2), seed=3))
    targets = [target for _, targets, _ in loader for target in targets]
    assert 0 < sum(target["boxes"][0, 0].item() != 1 for target in targets) < 6
    batches = list(eval_loader(dataset, 4, transform=detection_transform(), joint=True, stack=False))
    assert [image.shape[-1] for images, _, _ in batches for image in images] == list(range(24, 30))
    assert [target["image_id"] for _, targets, _ in batches for target in targets] == list(range(6))
