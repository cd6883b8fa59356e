"""`patnet predict`: the classes of images."""

import csv as csvlib
import json as jsonlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from ..data import read_image
from ..data.sources import TARS
from ..errors import InputError
from ..files import check_figure, save_figure
from ..loading import load
from ..train.figures import HIT, draw_image_grid
from ..train.predict import predict
from .parser import refuse_idle
from .tables import print_table

SUMMARY = "Predict the classes of images, with probabilities."
EXAMPLES = """Examples:
  patnet predict runs/first image.jpg other.png
  patnet predict runs/first images/ 'more/**/*.jpg' --top 3
  patnet predict first.onnx images/ --csv > predictions.csv
  patnet predict runs/first images/ --grid predictions.png
  patnet predict runs/first millions/ --out answers/ --workers 4
  patnet predict runs/first list.txt 'shards/*.tar' 'tables/*.parquet' --out answers/ --engine ray --embeddings
  patnet predict runs/first s3://bucket/images --out s3://bucket/answers --engine ray --ray-address auto

Images that cannot be read are reported after the others are predicted, and the exit code is then 2; with --out only if
they are more than --max-unreadable. With --out the same command resumes where it was stopped."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich", "pyarrow"))
POSITIONAL = {"run": None, "images": "+"}


def run(
    run: str,
    images: list[str],
    *,
    json: bool = False,
    csv: bool = False,
    grid: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    given: Collection[str] = (),
    **options: Any,
) -> int:
    """Predict, and print or write the predictions; the other options are those of `predict`.

    Args:
        run: Run directory, checkpoint or exported file.
        images: Image files, folders and patterns; lists of them (.txt); tar and Parquet files of images.
        json: Print JSON.
        csv: Print CSV.
        grid: PNG, PDF or SVG file of the first 24 images with their predictions.
        checkpoint: Checkpoint of the run.
    """
    out = options["out"]
    if json and csv:
        raise InputError("--json and --csv: choose one of them")
    if out is not None and (json or csv or grid):
        raise InputError(f"--out {out}: has all predictions; leave out --json, --csv and --grid")
    if out is None and (options["engine"] == "ray" or options["embeddings"]):
        raise InputError("--engine ray and --embeddings: need --out, a directory for the predictions")
    if options["ray_address"] and options["engine"] != "ray":
        raise InputError(f"--ray-address {options['ray_address']}: give --engine ray too")
    refuse_idle(
        given,
        {
            "--engine ray": (options["engine"] == "ray", ("actors", "actor_cpus", "actor_gpus", "actor_gb")),
            "--engine local": (options["engine"] == "local", ("workers",)),
            "--out": (options["out"] is not None, ("rows_per_file", "max_unreadable")),
        },
    )
    if grid is not None:
        check_figure(grid, "--grid")
        if inside := [name for name in images if "://" in name or name.endswith((*TARS, ".parquet"))]:
            raise InputError(f"--grid {grid}: draws image files, not those in {inside[0]}")
    found = predict(load(run, checkpoint=checkpoint), images, console=None, **options)
    if out is not None:
        print(f"Predictions for {found.images} images in {out}")
        if found.unreadable:
            reasons = f"the column error in {out} says why"
            print(f"patnet: {found.unreadable} of {found.images} images cannot be read; {reasons}", file=sys.stderr)
        return 0
    readable = [row for row in found.rows if row["error"] is None]
    if json:
        _print_json(readable)
    elif csv:
        _print_csv(readable)
    elif readable:
        _print_table(readable)
    if grid is not None and readable:
        _draw(readable[:24], f"Predictions of {run}", Path(grid))
    for row in found.rows:
        if row["error"] is not None:
            print(f"patnet: {row['error']}", file=sys.stderr)
    return 2 if len(readable) < len(found.rows) else 0


Row = dict[str, Any]


def _print_json(rows: Sequence[Row]) -> None:
    found = []
    for row in rows:
        top = [{"label": k, "probability": v} for k, v in zip(row["top_labels"], row["top_probabilities"], strict=True)]
        found.append({"path": row["path"], **top[0], "top": top})
    print(jsonlib.dumps(found, indent=2))


def _print_csv(rows: Sequence[Row]) -> None:
    writer = csvlib.writer(sys.stdout)
    ranks = range(1, 1 + max([1, *(len(row["top_labels"]) for row in rows)]))
    writer.writerow(["path", *(f"{what}{rank}" for rank in ranks for what in ("label", "probability"))])
    for row in rows:
        pairs = zip(row["top_labels"], row["top_probabilities"], strict=True)
        writer.writerow([row["path"], *(value for pair in pairs for value in pair)])


def _print_table(rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        percent = [f"{100 * probability:.1f} %" for probability in row["top_probabilities"]]
        others = [f"{label} {value}" for label, value in zip(row["top_labels"][1:3], percent[1:3], strict=True)]
        lines.append((row["path"], row["label"], ", ".join(others), percent[0]))
    print_table(("image", "class", "next", "probability"), lines, left=3)


def _draw(rows: Sequence[Row], title: str, file: Path) -> None:
    captions = [f"{Path(row['path']).name}\n{row['label']} ({100 * row['probability']:.0f} %)" for row in rows]
    images = [read_image(row["path"]) for row in rows]
    save_figure(draw_image_grid(images, captions, [HIT] * len(images), title), file)
