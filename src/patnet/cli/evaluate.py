"""`patnet evaluate`: the accuracy of a classifier, and its mistakes."""

import json as jsonlib
from typing import Any, Literal

from ..loading import load
from ..models import Threshold
from ..train.evaluate import evaluate
from .tables import print_lines, print_table

SUMMARY = "Evaluate a classifier on its test images; draw its confusion matrix and its worst mistakes."
EXAMPLES = """Examples:
  patnet evaluate runs/first
  patnet evaluate runs/first --split val --checkpoint last
  patnet evaluate runs/first --threshold defective --min-precision 0.9
  patnet evaluate runs/first --data other_images/ --out elsewhere
  patnet evaluate first.onnx --data images/ --out exported
  patnet evaluate runs/first --devices 2
  torchrun --nproc-per-node 2 -m patnet evaluate runs/first
  patnet evaluate runs/first --json"""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))
POSITIONAL = {"run": None}

LINES = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "calibration_error": "Calibration error",
}
FILES = ("confusion_matrix.png", "mistakes.png", "metrics.json", "per_class.csv")


def run(run: str, *, checkpoint: Literal["best", "last"] = "best", json: bool = False, **options: Any) -> int:
    """Evaluate, and print the metrics; the other options are those of `evaluate`.

    Args:
        run: Run directory; or a checkpoint or an exported file, with --data and --out.
        checkpoint: Checkpoint of the run.
        json: Print JSON.
    """
    evaluated = evaluate(load(run, checkpoint=checkpoint), checkpoint=checkpoint, console=None, **options)
    if evaluated is None:  # the first process prints
        return 0
    result, directory = evaluated
    if json:
        print(jsonlib.dumps(result, indent=2))
        return 0
    rows = [
        [name, *(f"{100 * row[key]:.1f}" for key in ("precision", "recall", "f1")), row["images"]]
        for name, row in result["per_class"].items()
    ]
    title = f"{result['run']} ({checkpoint}) on {result['data']}, {result['split']}"
    print_lines(f"Computed in {result['computed_in']}")
    if result["threshold"]:
        print_lines(Threshold(**result["threshold"]))
    print_table(("class", "precision, %", "recall, %", "F1, %", "images"), rows, title=title)
    print_lines(*(f"{label:<18}{100 * result[key]:6.2f} %" for key, label in LINES.items() if key in result))
    print_lines(*(directory / file for file in FILES))
    return 0
