"""`patnet detect evaluate`: how good a detector is, and where it goes wrong."""

import json as jsonlib
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...detection.evaluate import evaluate
from ...detection.evaluation import FIGURES

DESCRIPTION = "Evaluate a detector by COCO's figures, and draw its curves and its best and worst pictures."
EPILOG = """Examples:
  patnet detect evaluate runs/panels
  patnet detect evaluate runs/panels --split val --which last
  patnet detect evaluate runs/coco_s --data /path/to/coco --split val2017 --out elsewhere
  patnet detect evaluate runs/panels --class_agnostic --out boxes_of_any_class
  patnet detect evaluate runs/panels --devices 2
  torchrun --nproc-per-node 2 -m patnet detect evaluate runs/panels
  patnet detect evaluate runs/panels --json"""

NAMES = {"box": "boxes", "mask": "masks"}
FILES = ("precision_recall.png", "best_and_worst.png", "metrics.json", "per_class.csv", "results.json")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or a checkpoint together with --data and --out.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--data", type=str | None, default=None, help="Other annotations of the same classes.")
    parser.add_argument("--images", type=str | None, default=None, help="Folder of their pictures, if not the usual.")
    parser.add_argument(
        "--split", type=str | None, default=None, help="Of a folder, such as val2017; test where it has one, else val."
    )
    parser.add_argument("--class_agnostic", action="store_true", help="Take all classes for one.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder; by default evaluation-SPLIT in the run.")
    parser.add_argument("--batch_size", type=int, default=2, help="Pictures per step.")
    parser.add_argument("--workers", type=int, default=2, help="Processes that load pictures.")
    parser.add_argument("--accelerator", type=str, default="auto", help="Device, as Lightning names it.")
    parser.add_argument("--devices", type=str, default="1", help="How many devices, a process for each.")
    parser.add_argument("--max_faults", type=float, default=0.01, help="Share of annotations that may be wrong.")
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
    kinds = [kind for kind in NAMES if kind in result]
    console.print(
        f"{result['run']} ({result['weights']} weights) on {result['data']}, {result['split']}: "
        f"{result['pictures']} pictures",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    whole = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    whole.add_column("%")
    for kind in kinds:
        whole.add_column(NAMES[kind], justify="right")
    for name in FIGURES:
        whole.add_row(name, *(_percent(result[kind][name]) for kind in kinds))
    console.print(whole)
    classes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    classes.add_column("class", overflow="fold")
    for kind in kinds:
        for name in ("AP", "AP50"):
            classes.add_column(f"{kind} {name}, %", justify="right")
    classes.add_column("objects", justify="right")
    for name, row in result["box"]["per_class"].items():
        shares = [_percent(result[kind]["per_class"][name][key]) for kind in kinds for key in ("AP", "AP50")]
        classes.add_row(escape(name), *shares, str(row["objects"]))
    console.print(classes)
    for file in FILES:
        console.print(str(folder / file), highlight=False, soft_wrap=True, markup=False)
    return 0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
