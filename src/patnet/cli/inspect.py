"""`patnet inspect`: looking inside a network."""

import json as jsonlib
import sys
from typing import Any, Literal

from jsonargparse import ArgumentParser

from ..inspection.run import inspect_pictures

DESCRIPTION = "Draw what a network does with pictures: gates, attention, Grad-CAM, and what its blocks pass on."
EPILOG = """Examples:
  patnet inspect runs/first photo.jpg --out inside
  patnet inspect runs/first photos/ --out inside --size 224
  patnet inspect runs/first photo.jpg --out inside --panels attention position --position 3 1
  patnet inspect runs/first photo.jpg --out inside --panels sheet spatial channel shares cam
  patnet inspect runs/first photo.jpg --out inside --arrays npz

Each picture gets a sheet, NAME-sheet.png, or with --panels a PNG for each of these, drawn larger. A network that lacks
a part is drawn without it, and a line says so. Pictures that cannot be read are named after the others are drawn, and
the exit code is then 2. --size looks at the pictures in another size than the network was trained in: attention has a
cell for every 32x32 px. Grad-CAM needs pip install 'patnet[inspect]'."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or any checkpoint of a classifier; no exported file.")
    parser.add_argument("images", nargs="+", type=str, help="Picture files, folders and glob patterns.")
    parser.add_argument("--out", type=str, required=True, help="Folder for what is drawn.")
    parser.add_argument(
        "--panels",
        nargs="+",
        type=str,
        default=["sheet"],
        help="sheet, cam, spatial, channel, attention (every head), shares, position (relative positions, learned).",
    )
    parser.add_argument(
        "--position",
        nargs=2,
        type=int,
        default=None,
        metavar=("ROW", "COL"),
        help="Cell that attention is drawn from, from 0 at the upper left; that attended to most if not given.",
    )
    parser.add_argument("--target", type=str | None, default=None, help="Class that Grad-CAM is of; the likeliest.")
    parser.add_argument("--size", type=int, nargs="+", default=None, help="Side, or height and width, in px.")
    parser.add_argument("--arrays", type=Literal["npz", "json"] | None, default=None, help="Write the numbers too.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, json: bool, position: list[int] | None, **options: Any) -> int:
    """Look, and print what was found and written."""
    results, unreadable = inspect_pictures(
        options.pop("run"),
        options.pop("images"),
        options.pop("out"),
        position=None if position is None else (position[0], position[1]),
        **options,
    )
    if json:
        print(jsonlib.dumps(results, indent=2))
    else:
        for result in results:
            print(
                f"{result['path']}: {result['label']} {100 * result['probability']:.1f} %, in {result['seconds']:.1f} s"
            )
            for file in result["files"]:
                print(f"  {file}")
        for sentence in dict.fromkeys(said for result in results for said in result["missing"]):
            print(f"patnet: {sentence}", file=sys.stderr)
    for reason in unreadable:
        print(f"patnet: {reason}", file=sys.stderr)
    return 2 if unreadable else 0
