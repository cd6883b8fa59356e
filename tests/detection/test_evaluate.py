"""The evaluation of a trained detector, and the command."""

import csv
import json
import os
import subprocess
import sys

import pytest
from images import write_images
from PIL import Image
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.data import open_annotations
from patnet.detection import load_detector, save_detector
from patnet.detection.config import DetectConfig
from patnet.detection.data import open_splits
from patnet.detection.evaluate import evaluate
from patnet.detection.metrics import METRICS, coco_metrics
from patnet.detection.predict import predict, prediction_results

NAMES, IDS = ["cat", "dog", "a [bracketed] name"], [10, 20, 30]
QUIET = {"accelerator": "cpu", "workers": 0, "console": Console(quiet=True)}


@pytest.fixture
def run(tmp_path, small):
    """A run directory with a detector whose random weights find something."""

    def make(data, detector="mask_rcnn", width=256, names=NAMES, **options):
        directory = tmp_path / "run"
        save_detector(small(detector, width=width), directory / "best", class_names=names, category_ids=IDS)
        config = DetectConfig(data=str(data), out=str(directory), detector=detector, **options)
        (directory / "config.yaml").write_text(config.to_yaml())
        return load_detector(directory)

    return make


def test_files_of_an_evaluation(coco, run, capsys):
    root = coco(train=4, test=5)
    loaded = run(root)
    words = ["detect", "evaluate", str(loaded.run), "--accelerator", "cpu", "--workers", "0"]
    assert main([*words, "--json"]) == 0
    result, out = json.loads(capsys.readouterr().out), loaded.run / "evaluation-test"
    assert (result["split"], result["images"], result["checkpoint"]) == ("test", 5, "best")
    assert json.loads((out / "metrics.json").read_text()) == result
    results = json.loads((out / "results.json").read_text())
    assert len(results) == result["results"] > 5
    again = coco_metrics(open_annotations(root, split="test"), results)
    for iou_type in ("box", "mask"):
        assert {name: result[iou_type][name] for name in METRICS} == {name: again[iou_type][name] for name in METRICS}
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(result["mask"]["per_class"]) == NAMES
    assert list(rows[0]) == ["class", "objects", "box_AP", "box_AP50", "mask_AP", "mask_AP50"]
    for name in ("precision_recall.png", "best_and_worst.png"):
        with Image.open(out / name) as image:
            assert image.width > 600


def test_unreadable_images_are_left_out_up_to_a_share(coco, run, tmp_path, capfd):
    root = coco(train=4, test=5)
    loaded = run(root)
    broken = root / "test" / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=r"1 of 5 images cannot be read, more than --max-unreadable 0.01 .*2\.png"):
        evaluate(loaded, out=tmp_path / "refused", **QUIET)
    left_out, _ = evaluate(loaded, out=tmp_path / "out", max_unreadable=0.2, **{**QUIET, "console": None})
    assert f"Warning: 1 image cannot be read, so left out: {broken}: " in capfd.readouterr().err
    assert left_out["images"] == 4
    file = root / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    for key, name in (("images", "id"), ("annotations", "image_id")):
        content[key] = [one for one in content[key] if one[name] != 2]
    file.write_text(json.dumps(content))
    without, _ = evaluate(loaded, out=tmp_path / "without", **QUIET)
    assert left_out["box"] == without["box"]


def test_class_agnostic_evaluation(coco, run, capsys):
    loaded = run(coco(train=4, test=3))
    assert main(["detect", "evaluate", str(loaded.run), "--class-agnostic", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("boxes", "masks", "AP_small", "AR100", "all classes", "best_and_worst.png"))
    results = (loaded.run / "evaluation-test-class-agnostic" / "results.json").read_text()
    assert len({row["category_id"] for row in json.loads(results)}) > 1


@pytest.mark.parametrize(("detector", "masks"), [("faster_rcnn", True), ("mask_rcnn", False)])
def test_without_masks_of_the_detector_or_the_data_boxes_are_evaluated(coco, run, detector, masks):
    data = coco(polygons=masks, val=3)
    loaded = run(data, detector, width=16)
    result, out = evaluate(loaded, data=str(data / "annotations" / "instances_val.json"), **QUIET)
    assert ("mask" in result, out) == (False, loaded.run / "evaluation-val")


def test_without_test_images_the_held_out_ones_are_evaluated(trained, coco, run, tmp_path):
    root = coco(train=10)
    result, out = evaluate(run(root, width=16, val_fraction=0.3), **QUIET)
    assert (result["split"], result["images"]) == ("val", 3)
    held_out = open_splits(DetectConfig(data=str(root), out="", val_fraction=0.3)).val
    found = {row["image_id"] for row in json.loads((out / "results.json").read_text())}
    assert found <= {image.id for image in held_out.images}
    with pytest.raises(InputError, match="no test or validation images that it was not trained on; give --data"):
        evaluate(run(root, width=16, val_fraction=0.0), **QUIET)
    grey = load_detector(trained, "last")  # a detector of one channel
    assert evaluate(grey, data=str(root), split="train", out=tmp_path / "out", **QUIET)[0]["images"] == 10


def test_a_split_of_training_images_is_not_evaluated_by_default(run, tmp_path):
    names = [f"{i:02d}" for i in range(10)]
    root = write_images(tmp_path / "voc", JPEGImages=10)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    size = "<size><width>40</width><height>36</height></size>"
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in NAMES)
    for name in names:
        text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    for split, listed in {"train": names[:4], "val": names[4:6], "trainval": names[:6], "test": names[6:]}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(listed))

    def evaluated(train_split, val_fraction=0.34, **options):
        loaded = run(root, "faster_rcnn", 16, sorted(NAMES), train_split=train_split, val_fraction=val_fraction)
        result, out = evaluate(loaded, **options, **QUIET)
        assert out.name == f"evaluation-{result['split']}"
        return result["split"], result["images"]

    assert evaluated("trainval") == ("test", 4)
    (root / "ImageSets" / "Main" / "test.txt").unlink()
    assert evaluated("trainval") == ("held-out", 2)
    assert evaluated("trainval", split="val") == ("val", 2)
    assert evaluated("train") == ("val", 2)
    with pytest.raises(InputError, match="no test or validation images that it was not trained on; give --data"):
        evaluated("trainval", val_fraction=0.0)
    moved = tmp_path / "moved"
    (root / "JPEGImages").rename(moved)
    assert evaluated("trainval", images=str(moved)) == ("held-out", 2)


def test_the_held_out_images_are_where_images_says_and_as_valid_as_max_invalid_says(coco, run, tmp_path):
    root = coco(train=10, dev=3)
    (root / "train").rename(tmp_path / "train")
    loaded = run(root, "faster_rcnn", 16, train_split="train", val_fraction=0.3)
    assert evaluate(loaded, images=str(tmp_path / "train"), **QUIET)[0]["images"] == 3
    (root / "dev").rename(tmp_path / "dev")
    dev = run(root, "faster_rcnn", 16, train_split="train", val_split="dev")
    assert evaluate(dev, images=str(tmp_path / "dev"), **QUIET)[0]["images"] == 3

    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = -1
    file.write_text(json.dumps(content))
    options = {"train_split": "train", "val_fraction": 0.3, "images": str(tmp_path / "train")}
    with pytest.raises(InputError, match="1 of 10 annotations are invalid"):
        evaluate(run(root, "faster_rcnn", 16, **options), **QUIET)
    assert evaluate(run(root, "faster_rcnn", 16, **options), max_invalid=0.2, **QUIET)[0]["images"] == 3
    tolerant = run(root, "faster_rcnn", 16, max_invalid=0.2, **options)
    assert evaluate(tolerant, **QUIET)[0]["images"] == 3
    with pytest.raises(InputError, match="1 of 10 annotations are invalid"):
        evaluate(tolerant, max_invalid=0.0, **QUIET)


def test_images_are_evaluated_as_they_are_predicted(coco, run):
    root = coco(train=4, test=5)
    loaded = run(root, "faster_rcnn")
    _, out = evaluate(loaded, **QUIET)
    annotations = root / "annotations" / "instances_test.json"
    found = prediction_results(predict(loaded, [str(root / "test")], score_thresh=0, annotations=annotations)[0])
    expected = [{key: row[key] for key in row if key != "file_name"} for row in found]
    assert sorted(json.loads((out / "results.json").read_text()), key=str) == sorted(expected, key=str)


def test_the_validation_images_of_a_run_are_evaluated_where_they_are(coco, run, tmp_path):
    root = coco(train=4, val=3)
    (root / "val").rename(tmp_path / "elsewhere")
    (root / "annotations" / "instances_val.json").rename(root / "annotations" / "instances_val2017.json")
    folders = {"images": str(root / "train"), "val_images": str(tmp_path / "elsewhere")}
    for val_split, split in (("val", "val2017"), ("val2017", "val")):
        loaded = run(root, "faster_rcnn", 16, val_split=val_split, **folders)
        assert evaluate(loaded, split=split, **QUIET)[0]["images"] == 3
    assert evaluate(loaded, split="train", **QUIET)[0]["images"] == 4


@pytest.mark.parametrize("layout", ["images/{}", "{}/images", "{}"])  # two of YOLO, and LabelMe's
def test_the_split_of_a_folder_in_another_format(run, tmp_path, layout):
    names = sorted(NAMES)

    def make(name, **counts):
        root = write_images(tmp_path / name, **{layout.format(split): count for split, count in counts.items()})
        for file in root.rglob("*.png"):
            labels = root / file.relative_to(root).as_posix().replace("images", "labels")
            labels.parent.mkdir(parents=True, exist_ok=True)
            labels.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
            shapes = [{"label": label, "shape_type": "rectangle", "points": [[9, 9], [30, 20]]} for label in names]
            content = {"shapes": shapes, "imagePath": file.name, "imageWidth": 40, "imageHeight": 36}
            if layout == "{}":
                file.with_suffix(".json").write_text(json.dumps(content))
            else:
                (root / "data.yaml").write_text(json.dumps({"names": names}))
        return str(root)

    own = run(make("own", train=3, val=2, test=1), "faster_rcnn", 16, names)

    def evaluated(**options):
        result = evaluate(own, out=tmp_path / "out", **options, **QUIET)[0]
        return result["split"], result["images"]

    assert evaluated() == ("test", 1)
    assert evaluated(split="val") == ("val", 2)
    assert evaluated(data=make("others", train=3, valid=2)) == ("valid", 2)
    with pytest.raises(InputError, match="has training images and no split test, val, valid; give --split"):
        evaluated(data=make("training", train=3))
    assert evaluated(data=str(tmp_path / "training"), split="train") == ("train", 3)


def test_what_cannot_be_evaluated(coco, run, tmp_path):
    root = coco(train=4, test=3)
    loaded = run(root, width=16)
    (tmp_path / "file").touch()

    def expect(message, loaded=loaded, **options):
        with pytest.raises(InputError, match=message):
            evaluate(loaded, **options, **QUIET)

    expect("is not a run directory, so give --data and --out too", load_detector(loaded.run / "best"))
    expect("'dev'", split="dev")
    expect("cannot be written", out=tmp_path / "file")
    other = str(coco(["cat", "bird", "fish"], val=3))
    expect("its class 2 is 'bird', but 'dog' in .*run; give data of its classes", data=other)
    expect("has 2 classes, but .*run was trained on 3", data=str(coco(["cat", "dog"], val=3)))
    (root / "test" / "2.png").write_bytes(b"no image")
    expect(r"2.png: the file is not an image")


@pytest.mark.slow  # as often the import of everything
def test_two_processes_give_the_metrics_of_one(coco, run, tmp_path):
    """The five images are an odd number of batches: one process has padding, which does not count."""
    loaded = run(coco(train=4, test=5))
    alone, out = evaluate(loaded, **QUIET)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "patnet"]
    options = ["--accelerator", "cpu", "--workers", "0", "--out", str(tmp_path / "together")]
    environment = {"check": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True}
    words = [sys.executable, *command, "detect", "evaluate", str(loaded.run), *options]
    subprocess.run(words, **environment, timeout=300)
    together = tmp_path / "together"
    assert json.loads((together / "results.json").read_text()) == json.loads((out / "results.json").read_text())
    assert json.loads((together / "metrics.json").read_text()) == alone
