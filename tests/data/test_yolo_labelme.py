"""Annotations of YOLO and of LabelMe: what they hold, and what is wrong with them."""

import json

import pytest
from images import write_images
from PIL import Image

from patnet import InputError
from patnet.cli import main
from patnet.data import DetectionDataset, open_annotations


@pytest.fixture(params=["images/{}", "{}/images"])
def yolo(tmp_path, request):
    """Four training images with a box each, and one for validation, in either of YOLO's layouts."""
    root = tmp_path / "yolo"
    for split, count in (("train", 4), ("val", 1)):
        folder = request.param.format(split)
        write_images(root, **{folder: count})
        labels = root / folder.replace("images", "labels")
        labels.mkdir(parents=True)
        for i in range(count):
            (labels / f"{i:02d}.txt").write_text(f"{i % 2} 0.5 0.5 0.5 0.25\n")
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\ntrain: images/train\n")
    return root


def lines_of(root, split="train"):
    return next(folder for folder in (root / "labels" / split, root / split / "labels") if folder.is_dir())


def test_yolo_boxes_are_in_px(yolo):
    found = open_annotations(yolo, split="train")
    assert found.categories == {1: "cat", 2: "dog"}
    assert len(found.images) == 4
    assert (found.images[0].width, found.images[0].height) == (40, 36)
    assert found.images[1].objects[0].box == (10.0, 13.5, 30.0, 22.5)
    assert found.images[1].objects[0].category == 2
    assert len(open_annotations(yolo).images) == 5  # of all splits
    assert not found.has_masks
    image, target = DetectionDataset(found)[1]
    assert image.size == (40, 36)
    assert target["labels"].tolist() == [2]


def test_yolo_polygons_are_masks_and_images_without_lines_have_no_objects(yolo):
    folder = lines_of(yolo)
    for file in folder.iterdir():
        file.write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "03.txt").unlink()
    found = open_annotations(yolo, split="train")
    assert found.has_masks
    assert [len(image.objects) for image in found.images] == [1, 1, 1, 0]
    assert found.images[0].objects[0].box == pytest.approx((4, 3.6, 20, 18))


def test_yolo_lines_may_be_next_to_the_image(yolo):
    folder = lines_of(yolo)
    image = next(file for file in yolo.rglob("02.png") if "train" in file.parts)
    (folder / "02.txt").rename(image.with_suffix(".txt"))
    assert [len(image.objects) for image in open_annotations(yolo, split="train").images] == [1, 1, 1, 1]
    image.with_suffix(".txt").write_text("0 0.5\n")
    with pytest.raises(InputError, match=r"images.*02.txt:1: .*neither a box nor a polygon"):
        open_annotations(yolo, split="train")


def test_files_of_yolo_may_begin_with_a_byte_order_mark(yolo):
    names = yolo / "data.yaml"
    for file in (names, *yolo.rglob("*.txt")):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert open_annotations(yolo).class_names == ["cat", "dog"]
    names.unlink()
    (yolo / "classes.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert open_annotations(yolo).class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2 0.5 0.5 0.5 0.5", "a class that is not one of the names: 2, and there are 2, from 0"),
        ("-1 0.5 0.5 0.5 0.5", "a class that is not one of the names"),
        ("nan 0.5 0.5 0.5 0.5", "a class that is not one of the names"),
        ("inf 0.5 0.5 0.5 0.5", "a class that is not one of the names"),
        ("0 0.9 0.5 0.5 0.5", r"a box outside \[0, 1\]: 0.65 0.25 1.15 0.75"),
        ("0 20 13 4 4", r"a box outside \[0, 1\]"),
        ("0 nan 0.5 0.5 0.5", r"a box outside \[0, 1\]"),
        ("0 0.5 0.5", "neither a box nor a polygon: 3 numbers"),
        ("cat 0.5 0.5 0.5 0.5", "a line that is not numbers"),
    ],
)
def test_faults_of_yolo_name_file_and_line(yolo, line, problem):
    file = lines_of(yolo) / "02.txt"
    file.write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(InputError, match=f"1 of 5 annotations are invalid.*02.txt:2: .*{problem}"):
        open_annotations(yolo, split="train")
    found = open_annotations(yolo, split="train", max_invalid=0.5)
    assert sum(len(image.objects) for image in found.images) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nc: 2", "data.yaml: has no names"),
        ("names: {0: a, 2: b}", "data.yaml: has no names"),
        ("names: {0: a, b: c}", "data.yaml: has no names"),
        ("names: [", "data.yaml: not a YAML file"),
        (None, "neither data.yaml nor classes.txt"),
    ],
)
def test_yolo_needs_names(yolo, content, message):
    (yolo / "data.yaml").unlink()
    if content is None:
        (yolo / "labels").mkdir(exist_ok=True)
    else:
        (yolo / "data.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        open_annotations(yolo, split="train")


def test_a_split_that_yolo_does_not_have(yolo):
    with pytest.raises(InputError, match=r"has no (split|folder of images for the split) 'night'; give"):
        open_annotations(yolo, split="night")


def test_a_split_of_a_given_folder_of_yolo_images(tmp_path):
    root = write_images(tmp_path, **{"images/train": 3, "images/val": 2, "images/test": 1})
    (root / "classes.txt").write_text("cat\ndog\n")

    def count(images, split):
        return len(open_annotations(root, root / images, split=split).images)

    assert [count("images", split) for split in ("train", "val", None)] == [3, 2, 6]
    assert (count("images/train", "train"), count("images/val", "val")) == (3, 2)  # the split's own folder
    assert count("images/test", "train") == 1
    with pytest.raises(InputError, match=r"images/train: has no split 'val'; give a folder with val/, or leave"):
        count("images/train", "val")


@pytest.fixture
def labelme(tmp_path):
    root = write_images(tmp_path, labelme=3) / "labelme"
    shapes = [
        {"label": "dog", "shape_type": "rectangle", "points": [[30, 20], [10, 8]]},
        {"label": "cat", "shape_type": "polygon", "points": [[5, 5], [20, 5], [20, 25]]},
        {"label": "cat", "shape_type": "circle", "points": [[20, 18], [20, 28]]},
    ]
    for i in range(3):
        content = {"shapes": [shapes[i]], "imagePath": f"{i:02d}.png", "imageWidth": 40, "imageHeight": 36}
        (root / f"{i:02d}.json").write_text(json.dumps(content))
    return root


def test_labelme_shapes(labelme):
    found = open_annotations(labelme)
    assert found.categories == {1: "cat", 2: "dog"}
    boxes = [image.objects[0].box for image in found.images]
    assert boxes == [(10, 8, 30, 20), (5, 5, 20, 25), (10, 8, 30, 28)]
    assert [image.objects[0].segmentation is None for image in found.images] == [True, False, True]
    assert main(["data", "check", str(labelme), "--out", str(labelme / "check")]) == 0


def test_splits_of_labelme(labelme):
    assert len(open_annotations(labelme, split="train").images) == 3
    with pytest.raises(InputError, match=r"labelme: has no split 'val'; give a folder with val/, or leave"):
        open_annotations(labelme, split="val")
    write_images(labelme, val=3)
    (labelme / "01.json").rename(labelme / "val" / "01.json")
    assert [image.path.name for image in open_annotations(labelme, split="val").images] == ["01.png"]


def test_faults_of_labelme(labelme):
    file = labelme / "00.json"
    content = json.loads(file.read_text())
    content["shapes"] += [{"label": "dog", "shape_type": "point", "points": [[1, 2]]}, {"label": "x", "points": [[1]]}]
    file.write_text(json.dumps(content))
    found = open_annotations(labelme, max_invalid=1)
    assert [str(fault).partition("00.json: ")[2] for fault in found.faults] == [
        "shapes[1]: a shape without an area: point",
        "shapes[2]: a shape whose points are not pairs of numbers",
    ]
    file.write_text('{"shapes": []}')
    with pytest.raises(InputError, match=r"00\.json: not LabelMe's format, the field imagePath"):
        open_annotations(labelme)


def test_a_rotated_photo_has_the_size_that_is_shown(yolo):
    folder = next(folder for folder in (yolo / "images" / "train", yolo / "train" / "images") if folder.is_dir())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 36)).save(folder / "00.jpg", exif=exif)
    (folder / "00.png").unlink()
    assert (open_annotations(yolo, split="train").images[0].width) == 36
