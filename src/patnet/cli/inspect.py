"""`patnet inspect`: what a network computes for images."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Literal

from ..files import shown
from ..inspection.run import inspect_images
from ..loading import load

SUMMARY = "Draw what a network computes for images: gates, attention, Grad-CAM, and what its blocks change."
EXAMPLES = """Examples:
  patnet inspect runs/first image.jpg --out inside
  patnet inspect runs/first images/ --out inside --img-size 224
  patnet inspect runs/first image.jpg --out inside --panels attention position --position 3 1
  patnet inspect runs/first image.jpg --out inside --panels sheet spatial channel shares cam
  patnet inspect runs/first image.jpg --out inside --arrays npz

Each image gets a sheet, NAME-sheet.png, or a PNG for each of --panels, drawn larger. Parts that the network does not
have are left out, and a message says so. Images that cannot be read are listed at the end, and the exit code is then 2.
--img-size gives the images to the network in another size than in training: attention has a position for every
32x32 px. Grad-CAM needs pip install 'patnet[inspect]'."""
EXTRA = ("train", ("jsonargparse", "matplotlib", "rich"))
POSITIONAL = {"run": None, "images": "+"}


def run(
    run: str,
    images: list[str],
    *,
    out: str,
    panels: list[str] = ["sheet"],  # noqa: B006  # read only
    position: tuple[int, int] | None = None,
    target: str | None = None,
    img_size: list[int] | None = None,
    arrays: Literal["npz", "json"] | None = None,
    checkpoint: Literal["best", "last"] = "best",
    json: bool = False,
) -> int:
    """Inspect, and print what was found and written.

    Args:
        run: Run directory, or checkpoint of a classifier; no exported file.
        images: Image files, folders and glob patterns.
        out: Folder for the figures.
        panels: sheet, cam, spatial, attention (every head), channel, shares, position (relative positions).
        position: Row and column of the query position of the attention, from 0 at the upper left; default: the most
            attended position.
        target: Class of Grad-CAM; default: the predicted class.
        img_size: Side, or height and width, in px; default: the size of training.
        arrays: Write the arrays too, in this format.
        checkpoint: Weights of the run.
        json: Print JSON.
    """
    loaded = load(run, checkpoint=checkpoint)
    results, unreadable = inspect_images(
        loaded, images, Path(out), panels=panels, arrays=arrays, position=position, target=target, img_size=img_size
    )
    if json:
        print(jsonlib.dumps(results, indent=2))
    else:
        if loaded.threshold is not None:
            print(shown(str(loaded.threshold)))
        for result in results:
            answer = f"{result['label']} {100 * result['probability']:.1f} %, in {result['seconds']:.1f} s"
            print(*map(shown, (f"{result['path']}: {answer}", *result["files"])), sep="\n  ")
    missing = [] if json else [line for result in results for line in result["missing"]]
    for line in dict.fromkeys([*missing, *unreadable]):
        print(f"patnet: {line}", file=sys.stderr)
    return 2 if unreadable else 0
