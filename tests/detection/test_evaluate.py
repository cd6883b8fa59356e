"""The evaluation of a trained detector, and the command."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.data import open_annotations
from patnet.detection import save_detector
from patnet.detection.config import DetectConfig
from patnet.detection.evaluate import evaluate
from patnet.detection.evaluation import FIGURES, evaluate_results
from patnet.detection.fit import open_run_pictures

NAMES = ["cell", "crack", "stain"]
QUIET = {"accelerator": "cpu", "workers": 0, "console": Console(quiet=True)}


@pytest.fixture
def data(tmp_path):
    """COCO's folders, with pictures of several sizes and rectangles in them."""

    def make(names=NAMES, polygons=True, name="data", **counts):
        root = tmp_path / name
        (root / "annotations").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for split, count in counts.items():
            (root / split).mkdir()
            images, objects = [], []
            for i in range(1, count + 1):
                width, height = int(rng.integers(60, 100)), int(rng.integers(50, 80))
                pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
                images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
                for _ in range(i % 3):
                    x, y = (int(v) for v in rng.integers(0, 30, 2))
                    pixels[y : y + 20, x : x + 25] += 150
                    outline = [[x, y, x + 25, y, x + 25, y + 20, x, y + 20]]
                    category = 10 * int(rng.integers(1, len(names) + 1))
                    one = {"id": len(objects) + 1, "image_id": i, "category_id": category, "bbox": [x, y, 25, 20]}
                    objects.append({**one, **({"segmentation": outline} if polygons else {})})
                Image.fromarray(pixels).save(root / split / f"{i}.png")
            categories = [{"id": 10 * k, "name": name} for k, name in enumerate(names, start=1)]
            content = {"images": images, "annotations": objects, "categories": categories}
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture
def run(tmp_path, small):
    """A run folder with a detector whose random weights find something."""

    def make(data, detector="mask_rcnn", **options):
        folder = tmp_path / "run"
        model = small(detector)
        for which in ("best", "last"):
            save_detector(model, folder / which, class_names=NAMES, category_ids=[10, 20, 30])
        config = DetectConfig(data=str(data), out=str(folder), detector=detector, **options)
        (folder / "config.yaml").write_text(config.to_yaml())
        return folder

    return make


def test_what_an_evaluation_leaves(data, run):
    root = data(train=4, test=5)
    folder = run(root)
    result, out = evaluate(folder, **QUIET)
    assert out == folder / "evaluation-test"
    assert (result["split"], result["pictures"], result["weights"]) == ("test", 5, "best")
    assert json.loads((out / "metrics.json").read_text()) == result
    results = json.loads((out / "results.json").read_text())
    assert len(results) == result["results"] > 5
    again = evaluate_results(open_annotations(root, split="test"), results)
    for kind in ("box", "mask"):
        assert {name: result[kind][name] for name in FIGURES} == {name: again[kind][name] for name in FIGURES}
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert list(rows[0]) == ["class", "objects", "box_AP", "box_AP50", "mask_AP", "mask_AP50"]
    for name in ("precision_recall.png", "best_and_worst.png"):
        with Image.open(out / name) as image:
            assert image.width > 600


def test_boxes_alone(data, run, tmp_path):
    """Of a detector without masks, or of data without."""
    folder = run(data(train=4, test=3), "faster_rcnn")
    assert "mask" not in evaluate(folder, **QUIET)[0]
    boxes = data(polygons=False, name="boxes", val=3)
    folder = run(boxes, "mask_rcnn")
    result, out = evaluate(folder, data=str(boxes / "annotations" / "instances_val.json"), **QUIET)
    assert "mask" not in result
    assert out == folder / "evaluation-val"


def test_classes_taken_for_one(data, run, tmp_path):
    folder = run(data(train=4, test=3))
    result, out = evaluate(folder, class_agnostic=True, out=tmp_path / "agnostic", **QUIET)
    assert list(result["mask"]["per_class"]) == ["all classes"]
    assert len({row["category_id"] for row in json.loads((out / "results.json").read_text())}) > 1


def test_a_run_without_test_pictures_is_evaluated_on_what_chose_its_best_epoch(data, run):
    root = data(train=10)
    folder = run(root, val_fraction=0.3)
    result, out = evaluate(folder, **QUIET)
    assert (result["split"], result["pictures"]) == ("val", 3)
    held_out = open_run_pictures(DetectConfig(data=str(root), out="", val_fraction=0.3)).val
    assert held_out is not None
    found = {row["image_id"] for row in json.loads((out / "results.json").read_text())}
    assert found <= {picture.id for picture in held_out.pictures}
    folder = run(root, val_fraction=0.0)
    with pytest.raises(InputError, match="has no test or validation pictures; give --data"):
        evaluate(folder, **QUIET)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cell", "dirt", "stain"], "its class 2 is 'dirt', but 'crack' in .*run; give data of its classes"),
        (["cell", "crack"], "has 2 classes, but .*run was trained on 3"),
    ],
)
def test_data_of_other_classes(data, run, names, said):
    folder = run(data(train=4, test=3))
    with pytest.raises(InputError, match=said):
        evaluate(folder, data=str(data(names, name="other", val=3)), **QUIET)


def test_what_cannot_be_evaluated(data, run, tmp_path):
    root = data(train=4, test=3)
    folder = run(root)
    with pytest.raises(InputError, match="is a checkpoint, not a run folder, so give --data and --out too"):
        evaluate(folder / "best", **QUIET)
    with pytest.raises(InputError, match="has no one split 'dev'"):
        evaluate(folder, split="dev", **QUIET)
    with pytest.raises(InputError, match="--batch_size 0: must be at least 1"):
        evaluate(folder, batch_size=0, **QUIET)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        evaluate(folder, out=tmp_path / "file", **QUIET)
    (root / "test" / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2.png: the file is not a picture"):
        evaluate(folder, **QUIET)


def test_the_command(data, run, capsys):
    folder = run(data(train=4, test=3))
    assert main(["detect", "evaluate", str(folder), "--accelerator", "cpu", "--workers", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["mask"]["per_class"]) == set(NAMES)
    assert main(["detect", "evaluate", str(folder), "--accelerator", "cpu", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("boxes", "masks", "AP_small", "AR100", *NAMES, "best_and_worst.png"))
    assert main(["detect", "evaluate", str(folder), "--split", "dev"]) == 2
    assert "has no one split 'dev'" in capsys.readouterr().err


@pytest.mark.slow  # as often the import of everything
def test_two_processes_give_the_figures_of_one(data, run, tmp_path):
    """The five pictures make three batches: one process fills its share up with what does not count."""
    folder = run(data(train=4, test=5))
    alone, out = evaluate(folder, **QUIET)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "patnet"]
    options = ["--accelerator", "cpu", "--workers", "0", "--out", str(tmp_path / "together")]
    subprocess.run(
        [sys.executable, *command, "detect", "evaluate", str(folder), *options],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    together = tmp_path / "together"
    assert json.loads((together / "results.json").read_text()) == json.loads((out / "results.json").read_text())
    assert json.loads((together / "metrics.json").read_text()) == alone
