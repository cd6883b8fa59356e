"""`patnet detect evaluate`: the metrics of a detector, and its errors."""

import json as jsonlib
from typing import Any, Literal

from ..detection import load_detector
from ..detection.evaluate import evaluate
from ..detection.metrics import METRICS
from .tables import print_lines, print_table

SUMMARY = "Evaluate a detector with COCO's metrics, and draw its curves and its best and worst images."
EXAMPLES = """Examples:
  patnet detect evaluate runs/mine
  patnet detect evaluate runs/mine --split val --checkpoint last
  patnet detect evaluate runs/coco_s --data /path/to/coco --split val2017 --out elsewhere
  patnet detect evaluate runs/mine --class-agnostic --out one_class
  patnet detect evaluate runs/mine --devices 2
  torchrun --nproc-per-node 2 -m patnet detect evaluate runs/mine
  patnet detect evaluate runs/mine --json"""
EXTRA = (
    "detection",
    ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich", "faster_coco_eval", "pycocotools"),
)
POSITIONAL = {"run": None}

NAMES = {"box": "boxes", "mask": "masks"}
FILES = ("precision_recall.png", "best_and_worst.png", "metrics.json", "per_class.csv", "results.json")


def run(run: str, *, checkpoint: Literal["best", "last"] = "best", json: bool = False, **options: Any) -> int:
    """Evaluate, and print the metrics; the other options are those of `evaluate`.

    Args:
        run: Run directory; or a checkpoint, with --data and --out.
        checkpoint: Checkpoint of the run.
        json: Print JSON.
    """
    evaluated = evaluate(load_detector(run, checkpoint), checkpoint=checkpoint, console=None, **options)
    if evaluated is None:  # the first process prints
        return 0
    result, directory = evaluated
    if json:
        print(jsonlib.dumps(result, indent=2))
        return 0
    print_lines(f"{result['run']} ({checkpoint}) on {result['data']}, {result['split']}: {result['images']} images")
    found = {iou_type: result[iou_type] for iou_type in NAMES if iou_type in result}
    rows = [[name, *(_percent(metrics[name]) for metrics in found.values())] for name in METRICS]
    print_table(["%", *(NAMES[iou_type] for iou_type in found)], rows)
    shares = [(iou_type, key) for iou_type in found for key in ("AP", "AP50")]
    rows = [
        [name, *(_percent(found[iou_type]["per_class"][name][key]) for iou_type, key in shares), row["objects"]]
        for name, row in result["box"]["per_class"].items()
    ]
    print_table(["class", *(f"{iou_type} {key}, %" for iou_type, key in shares), "objects"], rows)
    print_lines(*(directory / file for file in FILES))
    return 0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
