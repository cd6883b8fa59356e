import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.functional import pil_to_tensor

from patnet.cli import main
from patnet.data.detection import open_annotations
from patnet.data.panels import write_panels
from patnet.detection import load_detector, save_detector
from patnet.detection.drawing import draw_detections
from patnet.detection.evaluation import evaluate_results, results_of
from patnet.detection.predict import coco_results, drawn_names, predict
from patnet.errors import InputError

NAMES, IDS = ["cat", "dog", "a [bracketed] name"], [17, 18, 90]


@pytest.fixture
def saved(small, tmp_path):
    """Writes a detector of three classes that finds something."""

    def save(detector="mask_rcnn", **kwargs):
        return save_detector(small(detector, **kwargs), tmp_path / "run", class_names=NAMES, category_ids=IDS)

    return save


@pytest.fixture
def pictures(tmp_path):
    """Two folders with pictures of different sizes and modes, two of them of one name."""
    generator = np.random.default_rng(0)
    for name, size, mode in (
        ("one/a.jpg", (100, 70), "RGB"),
        ("one/b.png", (60, 130), "L"),
        ("two/a.png", (90, 90), "RGBA"),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        noise = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(file)
    return tmp_path


@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_the_detectors_own(saved, pictures, detector, batch_size):
    run = saved(detector)
    found, unreadable = predict(run, [str(pictures / "one")], min_score=0.01, batch_size=batch_size)
    assert unreadable == []
    assert [(p["image_id"], p["path"]) for p in found] == [
        (1, str(pictures / "one" / "a.jpg")),
        (2, str(pictures / "one" / "b.png")),
    ]
    model = load_detector(run).model
    (model.roi_heads if detector == "mask_rcnn" else model).score_thresh = 0.01
    read = [pil_to_tensor(Image.open(prediction["path"]).convert("RGB")) / 255 for prediction in found]
    with torch.no_grad():
        expected = model(read) if batch_size > 1 else [model([picture])[0] for picture in read]
    for prediction, of_picture in zip(found, expected, strict=True):
        assert len(prediction["objects"]) > 0
        for one, truth in zip(prediction["objects"], results_of(0, of_picture, IDS), strict=True):
            assert one == {
                "label": NAMES[IDS.index(truth["category_id"])],
                **{key: truth[key] for key in truth if key != "image_id"},
            }
            assert ("segmentation" in one) == (detector == "mask_rcnn")


def test_of_overlapping_objects_the_best_is_kept(saved, pictures):
    run = saved()
    ((before, *_), _), ((after, *_), _) = (
        predict(run, [str(pictures / "one")], min_score=0.01, max_overlap=overlap) for overlap in (None, 0.1)
    )
    boxes = box_convert(torch.tensor([found["bbox"] for found in after["objects"]]), "xywh", "xyxy")
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    assert overlaps.max() <= 0.1
    assert after["objects"][0] == before["objects"][0]
    assert len(after["objects"]) < len(before["objects"])
    with pytest.raises(InputError, match=r"--max_overlap 2: must lie in \[0, 1\]"):
        predict(run, [str(pictures / "one")], max_overlap=2)


def test_a_higher_score_leaves_the_best(saved, pictures):
    run = saved()
    (every,), _ = predict(run, [str(pictures / "two")], min_score=0)
    scores = [found["score"] for found in every["objects"]]
    assert scores == sorted(scores, reverse=True)
    border = (scores[1] + scores[2]) / 2
    (best,), _ = predict(run, [str(pictures / "two")], min_score=border)
    assert best["objects"] == [found for found in every["objects"] if found["score"] > border]


def test_a_detector_for_grey_pictures(saved, pictures):
    run = saved(backbone_args={"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2, "in_chans": 1})
    found, _ = predict(run, [str(pictures / "one")], min_score=0.05, out=pictures / "drawn")
    assert all(p["objects"] for p in found)


def test_pictures_of_one_name_are_drawn_apart(saved, pictures, capsys):
    run, out = saved(), pictures / "drawn"
    (pictures / "one" / "broken.png").write_bytes(b"nothing")
    out.mkdir()
    (out / "a.png").write_bytes(b"an earlier one")
    assert main(["detect", "predict", str(run), str(pictures / "one"), str(pictures / "two"), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "broken.png: the file is not a picture" in said.err
    assert "none" in said.out or "cat" in said.out or "dog" in said.out
    assert sorted(file.name for file in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    for file in out.iterdir():
        with Image.open(file) as drawn:
            assert 1000 <= max(drawn.size) <= 1200


def test_names_are_the_same_for_no_two():
    files = [*map(Path, ["x/a.png", "a-2.png", "y/A.jpg", "z/a.gif", "b.png"])]
    assert drawn_names(files) == ["a.png", "a-2.png", "A-3.png", "a-4.png", "b.png"]


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (4000, 3000), (100, 2000), (1, 1)])
@pytest.mark.parametrize("count", [0, 30])
def test_a_drawing_can_be_read_at_any_size(tmp_path, size, count):
    width, height = size
    objects = [
        {"label": f"class {i}", "score": 0.9, "bbox": [0.5 * width, 0.1 * i / 30 * height, 0.4 * width, 0.5 * height]}
        for i in range(count)
    ]
    figure = draw_detections(Image.new("L", size), objects, range(1, count + 1), "nothing")
    across, down = figure.get_size_inches() * 150
    assert 1000 <= max(across, down) < 2000
    figure.savefig(tmp_path / "drawn.png", dpi=150)


def test_results_fit_any_evaluator(saved, tmp_path, capsys):
    panels = tmp_path / "panels"
    write_panels(panels, train=1, test=3, size=96, most=2)
    annotations = panels / "annotations" / "instances_test.json"
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 5 * i, "name": name} for i, name in enumerate(NAMES, start=1)]
    for i, row in enumerate(content["images"]):
        row["id"] = 70 - i
    for row in content["annotations"]:
        row["category_id"], row["image_id"] = 5, 71 - row["image_id"]
    annotations.write_text(json.dumps(content))
    command = ["detect", "predict", str(saved()), str(panels / "test"), "--json", "--out", "null", "--min_score", "0"]

    assert main(command) == 0
    numbered = json.loads(capsys.readouterr().out)
    assert {r["image_id"] for r in numbered} == {1, 2, 3}
    assert {r["category_id"] for r in numbered} <= set(IDS)
    assert not (tmp_path / "detections").exists()

    assert main([*command, "--annotations", str(annotations)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(numbered)
    by_id = {row["id"]: row["file_name"] for row in content["images"]}
    assert all(r["file_name"].endswith(by_id[r["image_id"]]) for r in found)
    assert {r["category_id"] for r in found} <= {5, 10, 15}
    evaluated = evaluate_results(open_annotations(annotations), found)
    assert evaluated["mask"]["AP"] is not None

    content["images"].pop()
    annotations.write_text(json.dumps(content))
    assert main([*command, "--annotations", str(annotations)]) == 2
    assert "names no picture" in capsys.readouterr().err
    content["categories"].pop()
    annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"has no class 'a \[bracketed\] name'"):
        predict(tmp_path / "run", [str(panels / "test" / content["images"][0]["file_name"])], annotations=annotations)


def test_nothing_found_is_an_empty_list():
    assert coco_results([{"path": "a.png", "image_id": 1, "objects": []}]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min_score", "1"], r"--min_score 1: must lie in \[0, 1\)"),
        (["--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--annotations", "none.json"], "--annotations none.json: is for the ids of --json"),
        (["--json", "--annotations", "none.json"], "none.json: the annotations cannot be read"),
        (["--out", "{run}/config.json/sub"], "cannot be made"),
    ],
)
def test_options_that_do_not_fit(saved, pictures, capsys, options, message):
    run = saved()
    options = [option.format(run=run) for option in options]
    assert main(["detect", "predict", str(run), str(pictures / "one"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
