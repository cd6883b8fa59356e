"""`patnet detect predict`: the objects in images."""

import json as jsonlib
import sys
from collections import Counter
from typing import Any, Literal

from ..detection import load_detector
from ..detection.predict import Prediction, predict, prediction_results
from ..errors import InputError
from ..train.config import Probability
from .tables import print_table

SUMMARY = "Detect the objects in images, and draw them."
EXAMPLES = """Examples:
  patnet detect predict runs/mine image.jpg other.png
  patnet detect predict runs/mine images/ 'more/**/*.jpg' --out drawn --score-thresh 0.7
  patnet detect predict runs/mine images/ --nms-thresh 0.5
  patnet detect predict runs/mine images/ --json --out null > results.json
  patnet detect predict runs/mine coco/val2017 --json --score-thresh 0.05
    --annotations coco/annotations/instances_val2017.json > results.json

Each image is drawn into --out with boxes, masks and scores. --json prints results in COCO's format, with masks as run
lengths; images are numbered from 1 in the order given, or have the ids of --annotations.
Images that cannot be read are reported after the others are predicted, and the exit code is then 2."""
EXTRA = ("detection", ("lightning", "jsonargparse", "matplotlib", "rich", "pycocotools"))
POSITIONAL = {"run": None, "images": "+"}


def run(
    run: str,
    images: list[str],
    *,
    score_thresh: Probability = 0.5,
    out: str | None = "detections",
    annotations: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    json: bool = False,
    **options: Any,
) -> int:
    """Detect, draw, and print the detections; the other options are those of `predict`.

    Args:
        run: Run directory, or a checkpoint of a detector.
        images: Image files, directories and glob patterns.
        score_thresh: Detections with a score of no more are left out.
        out: Directory of the drawings; null for none.
        annotations: File in COCO's format that gives images and classes of the same names their ids, for --json.
        checkpoint: Checkpoint of the run.
        json: Print COCO's results.
    """
    if annotations is not None and not json:
        raise InputError(f"--annotations {annotations}: is for --json; give that too, or leave it out")
    loaded = load_detector(run, checkpoint, score_thresh=score_thresh)
    predictions, unreadable = predict(
        loaded, images, score_thresh=score_thresh, out=out, annotations=annotations, console=None, **options
    )
    if json:
        print(jsonlib.dumps(prediction_results(predictions), indent=1))
    elif predictions:
        _print(predictions)
    for reason in unreadable:
        print(f"patnet: {reason}", file=sys.stderr)
    return 2 if unreadable else 0


def _print(predictions: list[Prediction]) -> None:
    rows = []
    for p in predictions:
        counts = Counter(found["label"] for found in p["objects"])
        objects = ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "none"
        best = f"{p['objects'][0]['score']:.2f}" if p["objects"] else ""
        rows.append([p["path"], objects, *([p["drawn"]] if "drawn" in p else []), best])
    drawn = ["drawn"] if "drawn" in predictions[0] else []
    print_table(["image", "objects", *drawn, "best score"], rows, left=2 + len(drawn))
