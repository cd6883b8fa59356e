"""`patnet detect predict`: the objects in pictures."""

import json as jsonlib
import sys
from collections import Counter
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...detection.predict import Prediction, coco_results, predict
from ...errors import InputError

DESCRIPTION = "Find the objects in pictures, and draw them."
EPILOG = """Examples:
  patnet detect predict runs/panels photo.jpg other.png
  patnet detect predict runs/panels photos/ 'more/**/*.jpg' --out drawn --min_score 0.7
  patnet detect predict runs/panels photos/ --max_overlap 0.5
  patnet detect predict runs/panels photos/ --json --out null > results.json
  patnet detect predict runs/panels panels/test --json --min_score 0.05 \\
    --annotations panels/annotations/instances_test.json > results.json

Each picture is drawn into --out with boxes, masks and scores. --json prints results in COCO's format, with masks as run
lengths; pictures count from 1 in the order given, or have the ids of --annotations.
Pictures that cannot be read are named after the others are answered, and the exit code is then 2."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or a directory with a detector.")
    parser.add_argument("images", nargs="+", type=str, help="Picture files, folders and glob patterns.")
    parser.add_argument("--out", type=str | None, default="detections", help="Folder to draw into; null for none.")
    parser.add_argument("--min_score", type=float, default=0.5, help="Leave out what has a score of no more.")
    parser.add_argument(
        "--max_overlap",
        type=float | None,
        default=None,
        help="IoU above which the best of several boxes is kept, whatever their classes.",
    )
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--batch_size", type=int, default=1, help="Pictures per step.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that load pictures.")
    parser.add_argument("--accelerator", type=str, default="auto", help="Device, as Lightning names it.")
    parser.add_argument("--json", action="store_true", help="Print COCO's results.")
    parser.add_argument(
        "--annotations", type=str | None, default=None, help="File in COCO's format with the ids for --json."
    )


def run(*, json: bool, **options: Any) -> int:
    """Detect, draw, and print the answers."""
    if options["annotations"] is not None and not json:
        raise InputError(
            f"--annotations {options['annotations']}: is for the ids of --json; give that too, or leave it out"
        )
    predictions, unreadable = predict(
        options.pop("run"), options.pop("images"), **options, console=Console(stderr=True)
    )
    if json:
        print(jsonlib.dumps(coco_results(predictions), indent=1))
    elif predictions:
        _print_table(predictions)
    for reason in unreadable:
        print(f"patnet: {reason}", file=sys.stderr)
    return 2 if unreadable else 0


def _print_table(predictions: list[Prediction]) -> None:
    table = Table()
    table.add_column("picture", overflow="fold")
    table.add_column("objects")
    table.add_column("best score", justify="right")
    if "drawn" in predictions[0]:
        table.add_column("drawn", overflow="fold")
    for p in predictions:
        counts = Counter(found["label"] for found in p["objects"])
        said = ", ".join(f"{count} {escape(label)}" for label, count in counts.most_common()) or "none"
        best = f"{p['objects'][0]['score']:.2f}" if p["objects"] else ""
        table.add_row(escape(p["path"]), said, best, *([escape(p["drawn"])] if "drawn" in p else []))
    Console().print(table)
