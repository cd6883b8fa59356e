"""`patnet evaluate`: how good a run is, and where it goes wrong."""

import json as jsonlib
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from ..train.evaluate import evaluate

DESCRIPTION = "Evaluate a run on its test pictures, and draw its confusion matrix and its worst mistakes."
EPILOG = """Examples:
  patnet evaluate runs/first
  patnet evaluate runs/first --split val --which last
  patnet evaluate runs/first --data other_photos/ --out elsewhere
  patnet evaluate runs/first --devices 2
  torchrun --nproc-per-node 2 -m patnet evaluate runs/first
  patnet evaluate runs/first --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or a checkpoint together with --data and --out.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--views", type=int, default=1, help="Average over 2, 4 or 8 symmetries of each picture.")
    parser.add_argument(
        "--split", type=Literal["test", "val"] | None, default=None, help="Pictures; test where the data set has it."
    )
    parser.add_argument("--data", type=str | None, default=None, help="Another data set with the same classes.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder; by default evaluation-SPLIT in the run.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures per step.")
    parser.add_argument("--workers", type=int, default=2, help="Processes that load pictures.")
    parser.add_argument("--accelerator", type=str, default="auto", help="Device, as Lightning names it.")
    parser.add_argument("--devices", type=str, default="1", help="How many devices, a process for each.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, json: bool, **options: Any) -> int:
    """Evaluate, and print the figures."""
    evaluated = evaluate(options.pop("run"), **options, console=Console(stderr=True))
    if evaluated is None:  # the first process speaks for all
        return 0
    result, folder = evaluated
    if json:
        print(jsonlib.dumps(result, indent=2))
        return 0
    console = Console()
    table = Table(title=f"{result['run']} ({result['weights']} weights) on {result['data']}, {result['split']}")
    table.add_column("class")
    for heading in ("precision, %", "recall, %", "F1, %", "pictures"):
        table.add_column(heading, justify="right")
    for name, row in result["per_class"].items():
        table.add_row(name, *(f"{100 * row[k]:.1f}" for k in ("precision", "recall", "f1")), str(row["pictures"]))
    console.print(table)
    lines = [("Top-1 accuracy", "top1"), ("Top-5 accuracy", "top5"), ("Balanced accuracy", "balanced_accuracy")]
    for label, key in [*lines, ("Calibration error", "calibration_error")]:
        if key in result:
            console.print(f"{label:<18}{100 * result[key]:6.2f} %", highlight=False)
    for file in ("confusion_matrix.png", "mistakes.png", "metrics.json", "per_class.csv"):
        console.print(str(folder / file), highlight=False, soft_wrap=True)
    return 0
