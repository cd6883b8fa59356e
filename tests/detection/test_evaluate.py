"""The evaluation of a trained detector, and the command."""

import csv
import json
import os
import subprocess
import sys

import pytest
from conftest import TINY
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

NAMES = ["cat", "dog", "a [bracketed] name"]
QUIET = {"accelerator": "cpu", "workers": 0, "console": Console(quiet=True)}


@pytest.fixture
def run(tmp_path, small):
    """A run directory with a detector whose random weights find something."""

    def make(data, detector="mask_rcnn", **options):
        directory = tmp_path / "run"
        for checkpoint in ("best", "last"):
            save_detector(small(detector), directory / checkpoint, class_names=NAMES, category_ids=[10, 20, 30])
        config = DetectConfig(data=str(data), out=str(directory), detector=detector, **options)
        (directory / "config.yaml").write_text(config.to_yaml())
        return load_detector(directory)

    return make


def test_files_of_an_evaluation(coco, run):
    root = coco(train=4, test=5)
    loaded = run(root)
    result, out = evaluate(loaded, **QUIET)
    assert out == loaded.run / "evaluation-test"
    assert (result["split"], result["images"], result["checkpoint"]) == ("test", 5, "best")
    assert json.loads((out / "metrics.json").read_text()) == result
    results = json.loads((out / "results.json").read_text())
    assert len(results) == result["results"] > 5
    again = coco_metrics(open_annotations(root, split="test"), results)
    for iou_type in ("box", "mask"):
        assert {name: result[iou_type][name] for name in METRICS} == {name: again[iou_type][name] for name in METRICS}
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert list(rows[0]) == ["class", "objects", "box_AP", "box_AP50", "mask_AP", "mask_AP50"]
    for name in ("precision_recall.png", "best_and_worst.png"):
        with Image.open(out / name) as image:
            assert image.width > 600


def test_boxes_alone(coco, run):
    """From a detector without masks, or on data without masks."""
    assert "mask" not in evaluate(run(coco(train=4, test=3), "faster_rcnn"), **QUIET)[0]
    boxes = coco(polygons=False, val=3)
    loaded = run(boxes, "mask_rcnn")
    result, out = evaluate(loaded, data=str(boxes / "annotations" / "instances_val.json"), **QUIET)
    assert "mask" not in result
    assert out == loaded.run / "evaluation-val"


def test_class_agnostic_evaluation(coco, run):
    result, out = evaluate(run(coco(train=4, test=3)), class_agnostic=True, **QUIET)
    assert out.name == "evaluation-test-class-agnostic"
    assert list(result["mask"]["per_class"]) == ["all classes"]
    assert len({row["category_id"] for row in json.loads((out / "results.json").read_text())}) > 1


def test_without_test_images_the_held_out_ones_are_evaluated(coco, run):
    root = coco(train=10)
    result, out = evaluate(run(root, val_fraction=0.3), **QUIET)
    assert (result["split"], result["images"]) == ("val", 3)
    held_out = open_splits(DetectConfig(data=str(root), out="", val_fraction=0.3)).val
    found = {row["image_id"] for row in json.loads((out / "results.json").read_text())}
    assert found <= {image.id for image in held_out.images}
    with pytest.raises(InputError, match="has no test or validation images; give --data"):
        evaluate(run(root, val_fraction=0.0), **QUIET)


def test_a_detector_of_grey_images(coco, small, tmp_path):
    root = coco(mode="L", test=3)
    model = small("retinanet", backbone_kwargs={**TINY, "in_chans": 1})
    save_detector(model, tmp_path / "saved", class_names=NAMES, category_ids=[10, 20, 30])
    result, _ = evaluate(load_detector(tmp_path / "saved"), data=str(root), out=tmp_path / "out", **QUIET)
    assert (result["split"], result["images"]) == ("test", 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "bird", "fish"], "its class 2 is 'bird', but 'dog' in .*run; give data of its classes"),
        (["cat", "dog"], "has 2 classes, but .*run was trained on 3"),
    ],
)
def test_data_of_other_classes(coco, run, names, message):
    with pytest.raises(InputError, match=message):
        evaluate(run(coco(train=4)), data=str(coco(names, val=3)), **QUIET)


def test_what_cannot_be_evaluated(coco, run, tmp_path):
    root = coco(train=4, test=3)
    loaded = run(root)
    with pytest.raises(InputError, match="is not a run directory, so give --data and --out too"):
        evaluate(load_detector(loaded.run / "best"), **QUIET)
    with pytest.raises(InputError, match="'dev'"):
        evaluate(loaded, split="dev", **QUIET)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(loaded, out=tmp_path / "file", **QUIET)
    (root / "test" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2.png: the file is not an image"):
        evaluate(loaded, **QUIET)


def test_the_command(coco, run, capsys):
    directory = str(run(coco(train=4, test=3)).run)
    options = ["--accelerator", "cpu", "--workers", "0"]
    assert main(["detect", "evaluate", directory, *options, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["mask"]["per_class"]) == set(NAMES)
    assert main(["detect", "evaluate", directory, *options]) == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed for word in ("boxes", "masks", "AP_small", "AR100", "cat", "[bracketed]", "best_and_worst.png")
    )
    assert main(["detect", "evaluate", directory, "--batch-size", "0"]) == 2
    assert "--batch-size 0: must be an integer above 0" in capsys.readouterr().err


@pytest.mark.slow  # as often the import of everything
def test_two_processes_give_the_metrics_of_one(coco, run, tmp_path):
    """The five images make three batches: one process has padding, which does not count."""
    loaded = run(coco(train=4, test=5))
    alone, out = evaluate(loaded, **QUIET)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "patnet"]
    options = ["--accelerator", "cpu", "--workers", "0", "--out", str(tmp_path / "together")]
    subprocess.run(
        [sys.executable, *command, "detect", "evaluate", str(loaded.run), *options],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    together = tmp_path / "together"
    assert json.loads((together / "results.json").read_text()) == json.loads((out / "results.json").read_text())
    assert json.loads((together / "metrics.json").read_text()) == alone
