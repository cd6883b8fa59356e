"""`patnet data`: make and check data sets of pictures with boxes and masks."""

import json as jsonlib
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..data.check import check_pictures, report_on
from ..data.detection import open_annotations
from ..data.figures import draw_distributions, draw_samples
from ..data.panels import write_panels
from ..errors import InputError, nearest
from ..train.figures import save_figure
from ..train.progress import progress_bar

DESCRIPTION = "Make or check a data set of pictures with boxes and masks."
EPILOG = """Examples:
  patnet data elpv-panels --out panels
  patnet data elpv-panels --out few --train 16 --test 4 --seed 1 --size 320 --cells 4
  patnet data check panels/annotations/instances_train.json
  patnet data check /path/to/coco --split val2017 --out coco_check
  patnet data check annotations.json --images pictures/ --json
  patnet data check VOCdevkit/VOC2012 --split train

elpv-panels composes pictures of solar panels from the built-in photographs of cells, in COCO's format: training panels
of training cells, test panels of test cells; the same options give the same files.
check reads a file in COCO's format, a folder as COCO 2017 unpacks, or one of Pascal VOC's XML files, says what it holds
and lists what is wrong, and draws samples.png and distributions.png into --out. The exit code is 2 where more than
--max_faults of the annotations cannot be used."""

# The options of each action, with their defaults; check's decode is a flag.
OPTIONS: dict[str, dict[str, Any]] = {
    "elpv-panels": {"out": None, "train": 400, "test": 100, "seed": 0, "size": 480, "cells": 6},
    "check": {"out": "check", "images": None, "split": None, "max_faults": 0.01, "decode": False, "json": False},
}

LISTED = 20  # lines of faults, and of remarks, on a terminal; --json has them all


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("action", nargs="+", type=str, help="elpv-panels; or the word check and the annotations.")
    parser.add_argument(
        "--out", type=str | None, default=None, help="Folder: a new one for the panels; for check's pictures, check."
    )
    panels = parser.add_argument_group("elpv-panels")
    panels.add_argument("--train", type=int | None, default=None, help="Training panels, 400.")
    panels.add_argument("--test", type=int | None, default=None, help="Test panels, 100.")
    panels.add_argument("--seed", type=int | None, default=None, help="Of everything that is drawn, 0.")
    panels.add_argument("--size", type=int | None, default=None, help="Longer side of the pictures in px, 480.")
    panels.add_argument("--cells", type=int | None, default=None, help="Cells along a panel's side at most, 6.")
    check = parser.add_argument_group("check")
    check.add_argument("--images", type=str | None, default=None, help="Folder of the pictures, if not the usual one.")
    check.add_argument("--split", type=str | None, default=None, help="Of a folder, such as train2017 or val.")
    check.add_argument(
        "--max_faults", type=float | None, default=None, help="Share of annotations that may be wrong, 0.01."
    )
    check.add_argument("--decode", action="store_true", help="Read every pixel of each picture, not its size alone.")
    check.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, action: list[str], **options: Any) -> int:
    """Make panels, or check annotations."""
    name, *others = action
    if name not in OPTIONS:
        raise InputError(f"data: no action {name!r}{nearest(name, OPTIONS)}; there are {', '.join(OPTIONS)}")
    given = {option: value for option, value in options.items() if value is not None and value is not False}
    for option in given:
        if option not in OPTIONS[name]:
            other = next(action for action in OPTIONS if option in OPTIONS[action])
            raise InputError(f"--{option}: is an option of patnet data {other}, not of {name}; leave it out")
    if len(others) != (name == "check"):
        wanted = "one file or folder of annotations" if name == "check" else "nothing but options"
        raise InputError(f"data {name}: takes {wanted} after it, not {' '.join(others) or 'nothing'}")
    settings = {**OPTIONS[name], **given}
    return _check(others[0], **settings) if name == "check" else _panels(**settings)


def _panels(*, out: str | None, train: int, test: int, seed: int, size: int, cells: int) -> int:
    if out is None:
        raise InputError("data elpv-panels: give --out, a new folder for the panels")
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("composing panels", total=train + test)
        write_panels(
            Path(out), train=train, test=test, seed=seed, size=size, most=cells, done=lambda: bar.advance(task)
        )
    console = Console()
    for split, number in (("train", train), ("test", test)):
        console.print(
            f"{number} panels in {out}/{split}, annotated in {out}/annotations/instances_{split}.json",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return 0


def _check(
    source: str, *, out: str, images: str | None, split: str | None, max_faults: float, decode: bool, json: bool
) -> int:
    if not 0 <= max_faults <= 1:
        raise InputError(f"--max_faults {max_faults}: must lie in [0, 1]")
    found = open_annotations(source, images, split=split, max_faults=None)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("checking pictures", total=len(found.pictures))
        found = check_pictures(found, decode=decode, done=lambda: bar.advance(task))
    report = report_on(found, max_faults)
    drawn = {}
    if found.pictures:
        drawn = {"samples": Path(out, "samples.png"), "distributions": Path(out, "distributions.png")}
        try:
            save_figure(draw_samples(found), drawn["samples"])
            save_figure(draw_distributions(found, report), drawn["distributions"])
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror or error}); give another") from error
    if json:
        print(jsonlib.dumps({**report, "drawn": {name: str(file) for name, file in drawn.items()}}, indent=2))
    else:
        _print_report(report, [str(file) for file in drawn.values()])
    found.refuse_faults(max_faults)
    if not report["usable"]:
        raise InputError(f"{found.source}: has no object that can be used; there is nothing to learn")
    return 0


def _print_report(report: dict[str, Any], drawn: list[str]) -> None:
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("label", "category id"):
        table.add_column(heading, justify="right")
    table.add_column("class", overflow="fold")
    for heading in ("objects", "pictures"):
        table.add_column(heading, justify="right")
    for c in report["classes"]:
        table.add_row(
            str(c["label"]), str(c["category_id"]), escape(c["name"]), str(c["annotations"]), str(c["pictures"])
        )
    console.print(table)
    sizes, number = report["sizes"], report["objects_per_picture"]
    say(f"pictures           {report['pictures']}, {report['pictures_without_objects']} of them without objects")
    say(f"their sizes        {_range(report['width'])} px wide, {_range(report['height'])} px high")
    say(f"objects            {report['annotations']}, {report['masks']} of them with a mask")
    say(f"in a picture       {number['min']} to {number['max']}, {number['mean']:.1f} on average")
    say(f"small/medium/large {sizes['small']}/{sizes['medium']}/{sizes['large']} (areas below 32², to 96², above)")
    say(f"crowd regions      {report['crowd_regions']}")
    wrong = report["wrong"]
    noun = "annotation" if wrong["annotations"] == 1 else "annotations"
    say(f"cannot be used     {wrong['annotations']} {noun}, {100 * wrong['share']:.2f} %")
    for kind, count in wrong["kinds"].items():
        say(f"  {count} with {kind}")
    for title, lines in (("wrong", wrong["listed"]), ("odd", report["remarks"])):
        for line in lines[:LISTED]:
            say(f"{title}: {line}")
        if len(lines) > LISTED:
            say(f"{title}: {len(lines) - LISTED} more, which --json lists")
    for file in drawn:
        say(f"Drawn {file}")


def _range(values: dict[str, float]) -> str:
    return f"{values['min']}" if values["min"] == values["max"] else f"{values['min']} to {values['max']}"
