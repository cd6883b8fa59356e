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
from ..train.shards import predict_shards

DESCRIPTION = "Name the classes of pictures, with probabilities."
EPILOG = """Examples:
  patnet predict runs/first photo.jpg other.png
  patnet predict runs/first photos/ 'more/**/*.jpg' --top 3
  patnet predict runs/first photos/ --csv > answers.csv
  patnet predict runs/first photos/ --sheet answers.png
  patnet predict runs/first millions/ --parquet answers/ --workers 4 --devices 2
  patnet predict runs/first --data hfds/food101 --split validation --parquet answers/

Pictures that cannot be read are named after the others are answered, and the exit code is then 2.
With --parquet the same command goes on where it was stopped, and may be started many times at once."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or any checkpoint.")
    parser.add_argument("images", nargs="*", type=str, help="Picture files, folders and glob patterns.")
    parser.add_argument("--parquet", type=str | None, default=None, help="Folder for the answers as Parquet files.")
    parser.add_argument("--shard_size", type=int, default=1024, help="Pictures in each of these files.")
    parser.add_argument("--data", type=str | None, default=None, help="Data set in place of pictures, with --parquet.")
    parser.add_argument("--data_root", type=str | None, default=None, help="Where timm finds or keeps it.")
    parser.add_argument("--split", type=str | None, default=None, help="Its split; test where it has one, then val.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--views", type=int, default=1, help="Average over 2, 4 or 8 symmetries of each picture.")
    parser.add_argument("--top", type=int, default=5, help="How many classes to give for each picture.")
    parser.add_argument("--sheet", type=str | None, default=None, help="PNG to draw the pictures and answers into.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures per step.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that load pictures.")
    parser.add_argument("--accelerator", type=str, default="auto", help="Device, as Lightning names it.")
    parser.add_argument("--devices", type=str, default="1", help="How many devices, a process for each.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--csv", action="store_true", help="Print CSV.")


def run(*, json: bool, csv: bool, parquet: str | None, sheet: str | None, **options: Any) -> int:
    """Predict, and print the answers or write them."""
    if json and csv:
        raise InputError("--json and --csv: choose one of them")
    if not options["images"] and options["data"] is None:
        raise InputError("give IMAGES too; patnet predict --help says what they are")
    if options["images"] and options["data"] is not None:
        raise InputError(f"--data {options['data']}: is in place of {options['images'][0]}; leave out one of them")
    if parquet is not None:
        if json or csv or sheet:
            raise InputError(f"--parquet {parquet}: writes the answers; leave out --json, --csv and --sheet")
        return _write_parquet(parquet, options)
    of_parquet = {name: options.pop(name) for name in ("data", "data_root", "split", "devices", "shard_size")}
    if of_parquet["data"] is not None or of_parquet["devices"] != "1":
        raise InputError("--data and --devices: are for many pictures; give --parquet, a folder for the answers, too")
    predictions, unreadable = predict(
        options.pop("run"), options.pop("images"), **options, sheet=sheet, console=Console(stderr=True)
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


def _write_parquet(folder: str, options: dict[str, Any]) -> int:
    """Predict into Parquet files, and say what they hold."""
    written = predict_shards(options.pop("run"), options.pop("images"), folder, **options, console=Console(stderr=True))
    if written is None:  # the first process speaks for all
        return 0
    Console().print(f"Answers for {written.pictures} pictures in {folder}", highlight=False, soft_wrap=True)
    if written.missing:
        print(
            f"patnet: {written.missing} more files are under way in other processes; "
            "if one was killed, the same command does what it left",
            file=sys.stderr,
        )
    if written.unreadable:
        print(
            f"patnet: {written.unreadable} of {written.pictures} pictures cannot be read; "
            f"the column error in {folder} says why",
            file=sys.stderr,
        )
    return 2 if written.unreadable else 0


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
