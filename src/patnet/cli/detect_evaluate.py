"""`patnet detect evaluate`: the metrics of a detector, and its errors."""

import json as jsonlib
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..detection import load_detector
from ..detection.evaluate import evaluate
from ..detection.metrics import METRICS

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
    plain = Console(highlight=False, soft_wrap=True, markup=False)
    plain.print(f"{result['run']} ({checkpoint}) on {result['data']}, {result['split']}: {result['images']} images")
    iou_types = [iou_type for iou_type in NAMES if iou_type in result]
    total = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    total.add_column("%")
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("class", overflow="fold")
    for iou_type in iou_types:
        total.add_column(NAMES[iou_type], justify="right")
        for name in ("AP", "AP50"):
            classes.add_column(f"{iou_type} {name}, %", justify="right")
    classes.add_column("objects", justify="right")
    for name in METRICS:
        total.add_row(name, *(_percent(result[iou_type][name]) for iou_type in iou_types))
    for name, row in result["box"]["per_class"].items():
        rows = [result[iou_type]["per_class"][name] for iou_type in iou_types]
        shares = [_percent(one[key]) for one in rows for key in ("AP", "AP50")]
        classes.add_row(escape(name), *shares, str(row["objects"]))
    Console().print(total, classes)
    for file in FILES:
        plain.print(str(directory / file))
    return 0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
