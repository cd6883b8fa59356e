import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou
from torchvision.transforms.functional import pil_to_tensor

from patnet.cli import main
from patnet.data import open_annotations
from patnet.detection import load_detector, save_detector
from patnet.detection.drawing import draw_detections
from patnet.detection.metrics import coco_metrics, coco_results
from patnet.detection.predict import predict

NAMES, IDS = ["cat", "dog", "a [bracketed] name"], [17, 18, 90]


@pytest.fixture(scope="module", params=["mask_rcnn", "retinanet"])
def saved(small, tmp_path_factory, request):
    """The directory of a detector of three classes that finds something."""
    directory = tmp_path_factory.mktemp("saved")
    return save_detector(small(request.param), directory, class_names=NAMES, category_ids=IDS)


only = pytest.mark.parametrize("saved", ["mask_rcnn"], indirect=True)


@pytest.fixture
def images(tmp_path):
    """Two folders with images of different sizes and modes, two of them of one name."""
    generator = np.random.default_rng(0)
    for name, shape, mode in (
        ("one/a.jpg", (70, 100, 3), "RGB"),
        ("one/b.png", (130, 60, 3), "L"),
        ("two/a.png", (9, 9, 3), "P"),
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(file)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3])
def test_predictions_are_the_detectors_own(saved, images, batch_size):
    loaded = load_detector(saved)
    found, unreadable = predict(loaded, [str(images / "one")], score_thresh=0.01, batch_size=batch_size)
    assert unreadable == []
    files = [str(images / "one" / "a.jpg"), str(images / "one" / "b.png")]
    assert [(p["image_id"], p["path"]) for p in found] == [(1, files[0]), (2, files[1])]
    read = [pil_to_tensor(Image.open(file).convert("RGB")) / 255 for file in files]
    with torch.no_grad():
        expected = loaded.model(read) if batch_size > 1 else [loaded.model([image])[0] for image in read]
    for prediction, of_image in zip(found, expected, strict=True):
        assert len(prediction["objects"]) > 0
        for one, truth in zip(prediction["objects"], coco_results(0, of_image, IDS), strict=True):
            del truth["image_id"]
            assert one == {"label": NAMES[IDS.index(truth["category_id"])], **truth}
            assert ("segmentation" in one) == hasattr(loaded.model, "roi_heads")


@only
def test_thresholds(saved, images):
    loaded, source = load_detector(saved, score_thresh=0), [str(images / "one" / "a.jpg")]
    (every,), _ = predict(loaded, source, score_thresh=0)
    scores = [found["score"] for found in every["objects"]]
    assert scores == sorted(scores, reverse=True)
    (best,), _ = predict(loaded, source, score_thresh=(scores[1] + scores[2]) / 2)
    assert best["objects"] == every["objects"][:2]
    (apart,), _ = predict(loaded, source, score_thresh=0, nms_thresh=0.1)
    boxes = box_convert(torch.tensor([found["bbox"] for found in apart["objects"]]), "xywh", "xyxy")
    assert box_iou(boxes, boxes).fill_diagonal_(0).max() <= 0.1
    assert apart["objects"][0] == every["objects"][0]
    assert 1 < len(apart["objects"]) < len(every["objects"])


def test_a_detector_of_grey_images(trained, images):
    found, _ = predict(load_detector(trained, score_thresh=0), [str(images / "one")], score_thresh=0)
    assert all(p["objects"] for p in found)


@only
def test_drawings_and_unreadable_images(saved, images, capsys):
    out = images / "drawn"
    (images / "one" / "broken.png").write_bytes(b"nothing")
    out.mkdir()
    (out / "a.png").write_bytes(b"an earlier one")
    words = ["detect", "predict", str(saved), str(images / "one"), str(images / "two"), "--out", str(out)]
    assert main([*words, "--score-thresh", "0.05", "--accelerator", "cpu"]) == 2
    said = capsys.readouterr()
    assert "broken.png: the file is not an image" in said.err
    assert "cat" in said.out or "dog" in said.out
    assert sorted(file.name for file in out.iterdir()) == ["a-2.png", "a.png", "b.png"]
    for file in out.iterdir():
        with Image.open(file) as drawn:
            assert 1000 <= max(drawn.size) <= 1200


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (4000, 3000), (100, 2000), (1, 1)])
@pytest.mark.parametrize("count", [0, 30])
def test_a_drawing_is_legible_at_any_size(tmp_path, size, count):
    width, height = size
    boxes = [[0.5 * width, 0.1 * i / 30 * height, 0.4 * width, 0.5 * height] for i in range(count)]
    objects = [{"label": f"class {i}", "score": 0.9, "bbox": box} for i, box in enumerate(boxes)]
    figure = draw_detections(Image.new("L", size), objects, range(1, count + 1))
    assert 1000 <= max(figure.get_size_inches()) * 150 < 2000
    figure.savefig(tmp_path / "drawn.png", dpi=150)


@only
def test_results_with_the_ids_of_an_annotation_file(saved, coco, capsys):
    root = coco(test=3)
    annotations = root / "annotations" / "instances_test.json"
    content = json.loads(annotations.read_text())
    for row, key in [(row, "id") for row in content["images"]] + [(row, "image_id") for row in content["annotations"]]:
        row[key] += 70
    annotations.write_text(json.dumps(content))
    words = ["detect", "predict", str(saved), str(root / "test"), "--json", "--out", "null", "--score-thresh", "0"]
    assert main(words) == 0
    numbered = json.loads(capsys.readouterr().out)
    assert {r["image_id"] for r in numbered} == {1, 2, 3}
    assert {r["category_id"] for r in numbered} <= set(IDS)

    words += ["--annotations", str(annotations)]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    by_id = {row["id"]: row["file_name"] for row in content["images"]}
    assert all(r["file_name"].endswith(by_id[r["image_id"]]) for r in found)
    assert {r["category_id"] for r in found} <= {10, 20, 30}
    assert len(found) == len(numbered)
    assert coco_metrics(open_annotations(annotations), found)["mask"]["AP"] is not None
    for key, message in (("categories", "has no class 'a [bracketed] name'"), ("images", "has no image 3.png")):
        changed = {**content, key: content[key][:-1]}
        annotations.write_text(json.dumps(changed))
        assert main(words) == 2
        assert message in capsys.readouterr().err


@only
def test_error_messages(saved, images, capsys):
    for words, message in (
        ("predict RUN IMAGES --score-thresh 2", r"--score-thresh 2: must be a number in \[0, 1\]"),
        ("predict RUN IMAGES --nms-thresh 2", r"--nms-thresh 2: must be"),
        ("predict RUN IMAGES --batch-size 0", "--batch-size 0: must be an integer above 0"),
        ("predict RUN IMAGES --annotations none.json", "--annotations none.json: is for --json"),
        ("predict RUN IMAGES --json --annotations none.json", "none.json: the annotations cannot be read"),
        ("predict RUN IMAGES --out RUN/config.json/sub", "cannot be written"),
        ("predict RUN IMAGES --out IMAGES/../one", "b.png is one of the images; choose another directory"),
        ("export RUN nothing.png --size 64 96 --out x.onnx", "nothing.png: no such image"),
        ("export RUN IMAGES --size 64 96 --out x.pt", "ends in .onnx"),
        ("export IMAGES IMAGES --size 64 96 --out x.onnx", "has no model.safetensors"),
        ("export RUN IMAGES --out x.onnx", "give --size too; patnet detect export --help"),
        ("export RUN IMAGES --size 64 --out x.onnx", "--size"),
        ("evaluate RUN --chekpoint last", r"no option --chekpoint \(did you mean '--checkpoint'\?\)"),
        ("train --data x --out y --lr high", "--lr high: must be a number above 0"),
    ):
        argv = words.replace("RUN", str(saved)).replace("IMAGES", str(images / "one")).split()
        assert main(["detect", *argv]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), words
        assert error.count("\n") == 1
