"""`patnet predict`: the classes of images."""

import csv as csvlib
import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..data import open_split, read_image
from ..errors import InputError
from ..files import save_figure
from ..loading import load
from ..train.config import PositiveInt
from ..train.figures import HIT, draw_image_grid
from ..train.predict import predict
from ..train.sinks import ParquetSink, Prediction, Sink
from .tables import print_table

SUMMARY = "Predict the classes of images, with probabilities."
EXAMPLES = """Examples:
  patnet predict runs/first image.jpg other.png
  patnet predict runs/first images/ 'more/**/*.jpg' --top 3
  patnet predict first.onnx images/ --csv > predictions.csv
  patnet predict runs/first images/ --grid predictions.png
  patnet predict runs/first millions/ --parquet predictions/ --workers 4 --devices 2
  patnet predict runs/first --data hfds/food101 --split validation --parquet predictions/

Images that cannot be read are reported after the others are predicted, and the exit code is then 2.
With --parquet the same command resumes where it was stopped, and several processes may share the directory."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich", "pyarrow", "filelock"))
POSITIONAL = {"run": None, "images": "*"}


def run(
    run: str,
    images: list[str],
    *,
    json: bool = False,
    csv: bool = False,
    grid: str | None = None,
    parquet: str | None = None,
    shard_size: PositiveInt = 1024,
    data: str | None = None,
    data_root: str | None = None,
    split: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    **options: Any,
) -> int:
    """Predict, and print or write the predictions; the other options are those of `predict`.

    Args:
        run: Run directory, checkpoint or exported file.
        images: Image files, directories and glob patterns.
        json: Print JSON.
        csv: Print CSV.
        grid: PNG or PDF of the first 24 images with their predictions.
        parquet: Directory for the predictions as Parquet files.
        shard_size: Images in each Parquet file.
        data: Data set to predict on in place of image files, with --parquet.
        data_root: Directory of a data set that timm reads.
        split: Split of the data set, by default test if it has one, else val.
        checkpoint: Checkpoint of the run.
    """
    if json and csv:
        raise InputError("--json and --csv: choose one of them")
    if bool(images) == (data is not None):
        raise InputError("give either IMAGES or --data; patnet predict --help says what they are")
    if parquet is None and (data is not None or options["devices"] != "1"):
        raise InputError("--data and --devices: need --parquet, a directory for the predictions")
    if parquet is not None and (json or csv or grid):
        raise InputError(f"--parquet {parquet}: has all predictions; leave out --json, --csv and --grid")
    loaded = load(run, checkpoint=checkpoint)
    source: Any = images
    if data is not None:
        source = open_split(data, split, in_chans=loaded.data_config["input_size"][0], data_root=data_root)
    sink = Sink() if parquet is None else ParquetSink(Path(parquet), shard_size)
    name = None if data is None else f"{data} {split} {data_root}"
    first = predict(loaded, source, sink, name=name, console=None, **options)
    if isinstance(sink, ParquetSink):
        return _report(sink) if first else 0
    readable = [p for p in sink.predictions if p.error is None]
    if json:
        _print_json(readable)
    elif csv:
        _print_csv(readable)
    elif readable:
        _print_table(readable)
    if grid is not None and readable:
        _draw(readable[:24], f"Predictions of {run}", Path(grid))
    for p in sink.predictions:
        if p.error is not None:
            print(f"patnet: {p.error}", file=sys.stderr)
    return 2 if len(readable) < len(sink.predictions) else 0


def _print_json(predictions: Sequence[Prediction]) -> None:
    rows = []
    for p in predictions:
        top = [{"label": k, "probability": v} for k, v in zip(p.labels, p.probabilities, strict=True)]
        rows.append({"path": p.name, **top[0], "top": top})
    print(jsonlib.dumps(rows, indent=2))


def _print_csv(predictions: Sequence[Prediction]) -> None:
    writer = csvlib.writer(sys.stdout)
    ranks = range(1, 1 + max([1, *(len(p.labels) for p in predictions)]))
    writer.writerow(["path", *(f"{what}{rank}" for rank in ranks for what in ("label", "probability"))])
    for p in predictions:
        pairs = zip(p.labels, p.probabilities, strict=True)
        writer.writerow([p.name, *(value for pair in pairs for value in pair)])


def _print_table(predictions: Sequence[Prediction]) -> None:
    rows = []
    for p in predictions:
        percent = [f"{100 * probability:.1f} %" for probability in p.probabilities]
        others = [f"{label} {value}" for label, value in zip(p.labels[1:3], percent[1:3], strict=True)]
        rows.append((p.name, p.labels[0], ", ".join(others), percent[0]))
    print_table(("image", "class", "next", "probability"), rows, left=3)


def _draw(predictions: Sequence[Prediction], title: str, file: Path) -> None:
    captions = [f"{Path(p.name).name}\n{p.labels[0]} ({100 * p.probabilities[0]:.0f} %)" for p in predictions]
    images = [read_image(str(p.key)) for p in predictions]
    save_figure(draw_image_grid(images, captions, [HIT] * len(images), title), file)


def _report(sink: ParquetSink) -> int:
    """Print what the Parquet files hold; the exit code is 2 if an image cannot be read."""
    images, unreadable, missing = sink.written()
    print(f"Predictions for {images} images in {sink.directory}")
    if missing:
        killed = "if one of them was killed, the same command completes its files"
        print(f"patnet: other processes are writing {missing} more files; {killed}", file=sys.stderr)
    if unreadable:
        reasons = f"the column error in {sink.directory} says why"
        print(f"patnet: {unreadable} of {images} images cannot be read; {reasons}", file=sys.stderr)
    return 2 if unreadable else 0
