"""`patnet predict`: the classes of pictures."""

import csv
import json as jsonlib
import sys
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..train.predict import Prediction, predict

DESCRIPTION = "Name the classes of pictures, with probabilities."
EPILOG = """Examples:
  patnet predict runs/first photo.jpg other.png
  patnet predict runs/first photos/ 'more/**/*.jpg' --top 3
  patnet predict runs/first photos/ --csv > answers.csv
  patnet predict runs/first photos/ --sheet answers.png

Pictures that cannot be read are named after the others are answered, and the exit code is then 2."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or any checkpoint.")
    parser.add_argument("images", nargs="+", type=str, help="Picture files, folders and glob patterns.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each picture.")
    parser.add_argument("--sheet", type=str | None, default=None, help="PNG to draw the pictures and answers into.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures per step.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that load pictures.")
    parser.add_argument("--accelerator", type=str, default="auto", help="Device, as Lightning names it.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--csv", action="store_true", help="Print CSV.")


def run(*, json: bool, csv: bool, **options: Any) -> int:
    """Predict, and print the answers."""
    if json and csv:
        raise InputError("--json and --csv: choose one of them")
    predictions, unreadable = predict(
        options.pop("run"), options.pop("images"), **options, console=Console(stderr=True)
    )
    if json:
        print(jsonlib.dumps(predictions, indent=2))
    elif csv:
        _print_csv(predictions)
    elif predictions:
        _print_table(predictions)
    for reason in unreadable:
        print(f"patnet: {reason}", file=sys.stderr)
    return 2 if unreadable else 0


def _print_csv(predictions: list[Prediction]) -> None:
    """A line for each picture: its path, then label and probability of each class in the order of their rank."""
    writer = csv.writer(sys.stdout)
    ranks = len(predictions[0]["top"]) if predictions else 1
    writer.writerow(["path", *(f"{what}{rank + 1}" for rank in range(ranks) for what in ("label", "probability"))])
    for p in predictions:
        writer.writerow([p["path"], *(entry[k] for entry in p["top"] for k in ("label", "probability"))])


def _print_table(predictions: list[Prediction]) -> None:
    table = Table()
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for p in predictions:
        others = ", ".join(f"{entry['label']} {100 * entry['probability']:.1f} %" for entry in p["top"][1:3])
        table.add_row(p["path"], p["label"], f"{100 * p['probability']:.1f} %", others)
    Console().print(table)
