import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.functional import pil_to_tensor

from patnet import InputError
from patnet.cli import main
from patnet.data import open_annotations
from patnet.detection import load_detector, save_detector
from patnet.detection.drawing import draw_detections
from patnet.detection.metrics import coco_metrics, coco_results
from patnet.detection.predict import drawing_names, predict, prediction_results

NAMES, IDS = ["cat", "dog", "a [bracketed] name"], [17, 18, 90]


@pytest.fixture
def saved(small, tmp_path):
    """Writes a detector of three classes that finds something."""

    def save(detector="mask_rcnn", **kwargs):
        return save_detector(small(detector, **kwargs), tmp_path / "run", class_names=NAMES, category_ids=IDS)

    return save


@pytest.fixture
def images(tmp_path):
    """Two folders with images of different sizes and modes, two of them of one name."""
    generator = np.random.default_rng(0)
    for name, size, mode in (
        ("one/a.jpg", (100, 70), "RGB"),
        ("one/b.png", (60, 130), "L"),
        ("two/a.png", (90, 90), "RGBA"),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(file)
    return tmp_path


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_predictions_are_the_detectors_own(saved, images, detector, batch_size):
    loaded = load_detector(saved(detector))
    found, unreadable = predict(loaded, [str(images / "one")], score_thresh=0.01, batch_size=batch_size)
    assert unreadable == []
    assert [(p["image_id"], p["path"]) for p in found] == [
        (1, str(images / "one" / "a.jpg")),
        (2, str(images / "one" / "b.png")),
    ]
    read = [pil_to_tensor(Image.open(prediction["path"]).convert("RGB")) / 255 for prediction in found]
    with torch.no_grad():
        expected = loaded.model(read) if batch_size > 1 else [loaded.model([image])[0] for image in read]
    for prediction, of_image in zip(found, expected, strict=True):
        assert len(prediction["objects"]) > 0
        for one, truth in zip(prediction["objects"], coco_results(0, of_image, IDS), strict=True):
            assert one == {
                "label": NAMES[IDS.index(truth["category_id"])],
                **{key: truth[key] for key in truth if key != "image_id"},
            }
            assert ("segmentation" in one) == (detector == "mask_rcnn")


def test_of_overlapping_objects_the_best_is_kept(saved, images):
    loaded = load_detector(saved())
    ((before, *_), _), ((after, *_), _) = (
        predict(loaded, [str(images / "one")], score_thresh=0.01, nms_thresh=thresh) for thresh in (None, 0.1)
    )
    boxes = box_convert(torch.tensor([found["bbox"] for found in after["objects"]]), "xywh", "xyxy")
    assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= 0.1
    assert after["objects"][0] == before["objects"][0]
    assert len(after["objects"]) < len(before["objects"])


def test_a_score_threshold_leaves_the_best(saved, images):
    loaded = load_detector(saved(), score_thresh=0)
    (every,), _ = predict(loaded, [str(images / "two")], score_thresh=0)
    scores = [found["score"] for found in every["objects"]]
    assert scores == sorted(scores, reverse=True)
    border = (scores[1] + scores[2]) / 2
    (best,), _ = predict(loaded, [str(images / "two")], score_thresh=border)
    assert best["objects"] == every["objects"][:2]


def test_a_detector_of_grey_images(saved, images):
    loaded = load_detector(saved(backbone_kwargs={**TINY, "in_chans": 1}))
    found, _ = predict(loaded, [str(images / "one")], score_thresh=0.05, out=images / "drawn")
    assert all(p["objects"] for p in found)


def test_drawings_and_unreadable_images(saved, images, capsys):
    run, out = saved(), images / "drawn"
    (images / "one" / "broken.png").write_bytes(b"nothing")
    out.mkdir()
    (out / "a.png").write_bytes(b"an earlier one")
    words = ["detect", "predict", str(run), str(images / "one"), str(images / "two"), "--out", str(out)]
    assert main([*words, "--score-thresh", "0.05", "--accelerator", "cpu"]) == 2
    said = capsys.readouterr()
    assert "broken.png: the file is not an image" in said.err
    assert "cat" in said.out or "dog" in said.out
    assert sorted(file.name for file in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    for file in out.iterdir():
        with Image.open(file) as drawn:
            assert 1000 <= max(drawn.size) <= 1200


def test_drawings_have_different_names():
    files = [*map(Path, ["x/a.png", "a-2.png", "y/A.jpg", "z/a.gif", "b.png"])]
    assert drawing_names(files) == ["a.png", "a-2.png", "A-3.png", "a-4.png", "b.png"]


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (4000, 3000), (100, 2000), (1, 1)])
@pytest.mark.parametrize("count", [0, 30])
def test_a_drawing_is_legible_at_any_size(tmp_path, size, count):
    width, height = size
    objects = [
        {"label": f"class {i}", "score": 0.9, "bbox": [0.5 * width, 0.1 * i / 30 * height, 0.4 * width, 0.5 * height]}
        for i in range(count)
    ]
    figure = draw_detections(Image.new("L", size), objects, range(1, count + 1))
    assert 1000 <= max(figure.get_size_inches()) * 150 < 2000
    figure.savefig(tmp_path / "drawn.png", dpi=150)


def test_results_with_the_ids_of_an_annotation_file(saved, coco, tmp_path, capsys):
    root = coco(test=3)
    annotations = root / "annotations" / "instances_test.json"
    content = json.loads(annotations.read_text())
    for row in content["images"]:
        row["id"] += 70
    for row in content["annotations"]:
        row["image_id"] += 70
    annotations.write_text(json.dumps(content))
    words = ["detect", "predict", str(saved()), str(root / "test"), "--json", "--out", "null", "--score-thresh", "0"]

    assert main(words) == 0
    numbered = json.loads(capsys.readouterr().out)
    assert {r["image_id"] for r in numbered} == {1, 2, 3}
    assert {r["category_id"] for r in numbered} <= set(IDS)

    assert main([*words, "--annotations", str(annotations)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(numbered)
    by_id = {row["id"]: row["file_name"] for row in content["images"]}
    assert all(r["file_name"].endswith(by_id[r["image_id"]]) for r in found)
    assert {r["category_id"] for r in found} <= {10, 20, 30}
    assert coco_metrics(open_annotations(annotations), found)["mask"]["AP"] is not None

    content["images"].pop()
    annotations.write_text(json.dumps(content))
    assert main([*words, "--annotations", str(annotations)]) == 2
    assert "has no image" in capsys.readouterr().err
    content["categories"].pop()
    annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has no class 'a \[bracketed\] name'"):
        predict(load_detector(tmp_path / "run"), [str(root / "test" / "1.png")], annotations=annotations)


def test_no_objects_are_an_empty_list():
    assert prediction_results([{"path": "a.png", "image_id": 1, "objects": []}]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score-thresh", "2"], r"--score-thresh 2: must be a number in \[0, 1\]"),
        (["--nms-thresh", "2"], r"--nms-thresh 2: must be"),
        (["--batch-size", "0"], "--batch-size 0: must be an integer above 0"),
        (["--annotations", "none.json"], "--annotations none.json: is for --json"),
        (["--json", "--annotations", "none.json"], "none.json: the annotations cannot be read"),
        (["--out", "{run}/config.json/sub"], "cannot be written"),
    ],
)
def test_options_that_do_not_fit(saved, images, capsys, options, message):
    run = saved()
    options = [option.format(run=run) for option in options]
    assert main(["detect", "predict", str(run), str(images / "one"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
