"""`patnet data check`: the contents and the faults of a data set of images with boxes and masks."""

import json as jsonlib
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data import open_annotations
from ..data.check import check_images, report
from ..data.figures import draw_distributions, draw_samples
from ..errors import InputError
from ..files import save_figure
from ..train.callbacks import progress_bar
from ..train.config import Probability
from .tables import print_lines, print_table

SUMMARY = "Check a data set of images with boxes and masks, and draw samples of it."
EXAMPLES = """Examples:
  patnet data check annotations.json --images images/ --json
  patnet data check /path/to/coco --split val2017 --out coco_check
  patnet data check VOCdevkit/VOC2012 --split train

Reads a file in COCO's format, a folder as COCO 2017 unpacks, or one of Pascal VOC, YOLO or LabelMe, reports what it
holds, lists what is invalid, and draws samples.png and distributions.png into --out. The exit code is 2 if more than
--max-invalid of the annotations cannot be used."""
EXTRA = ("detection", ("jsonargparse", "matplotlib", "rich", "faster_coco_eval"))
POSITIONAL = {"source": None}

LISTED = 20  # lines of faults, and of remarks, on a terminal; --json has them all


def run(
    source: str,
    *,
    out: str = "check",
    images: str | None = None,
    split: str | None = None,
    max_invalid: Probability = 0.01,
    decode: bool = False,
    json: bool = False,
) -> int:
    """Check the annotations and images of a data set.

    Args:
        source: File in COCO's format, folder as COCO 2017 unpacks, or folder of Pascal VOC, YOLO or LabelMe.
        out: Folder for the figures.
        images: Folder of the images, where it is not the usual one.
        split: Split of a folder, such as train2017 or val.
        max_invalid: Share of the annotations that may be invalid.
        decode: Decode all pixels of each image, not only its size.
        json: Print JSON.
    """
    found = open_annotations(source, images, split=split, max_invalid=None)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("checking images", total=len(found.images))
        found = check_images(found, decode=decode, done=lambda: bar.advance(task))
    result = report(found, max_invalid)
    figures: dict[str, Path] = {}
    if found.images:
        figures = {name: Path(out, f"{name}.png") for name in ("samples", "distributions")}
        save_figure(draw_samples(found), figures["samples"])
        save_figure(draw_distributions(found, result), figures["distributions"])
    if json:
        print(jsonlib.dumps({**result, "figures": {name: str(file) for name, file in figures.items()}}, indent=2))
    else:
        _print(result, list(figures.values()))
    found.require_valid(max_invalid)
    if not result["usable"]:
        raise InputError(f"{found.source}: has no object that can be used; there is nothing to train on")
    return 0


def _print(result: dict[str, Any], figures: list[Path]) -> None:
    keys = ("name", "label", "category_id", "annotations", "images")
    rows = [[c[key] for key in keys] for c in result["classes"]]
    print_table(("class", "label", "category id", "objects", "images"), rows)
    sizes, number, invalid = result["sizes"], result["objects_per_image"], result["invalid"]
    lines = [
        f"images             {result['images']}, {result['images_without_objects']} of them without objects",
        f"image sizes        {_range(result['width'])} px wide, {_range(result['height'])} px high",
        f"objects            {result['annotations']}, {result['masks']} of them with a mask",
        f"objects per image  {number['min']} to {number['max']}, mean {number['mean']:.1f}",
        f"small/medium/large {sizes['small']}/{sizes['medium']}/{sizes['large']} (areas below 32², to 96², above)",
        f"crowd regions      {result['crowd_regions']}",
        f"invalid            {invalid['annotations']} annotation{'' if invalid['annotations'] == 1 else 's'}, "
        f"{100 * invalid['share']:.2f} %",
        *(f"  {count} with {problem}" for problem, count in invalid["problems"].items()),
    ]
    for title, listed in (("invalid", invalid["listed"]), ("remark", result["remarks"])):
        lines += [f"{title}: {line}" for line in listed[:LISTED]]
        if len(listed) > LISTED:
            lines.append(f"{title}: {len(listed) - LISTED} more, which --json lists")
    print_lines(*lines, *(f"Figure {file}" for file in figures))


def _range(values: dict[str, float]) -> str:
    return f"{values['min']}" if values["min"] == values["max"] else f"{values['min']} to {values['max']}"
