"""`patnet detect train`: a detector's run in a run folder."""

import signal
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from ...detection.config import DetectConfig
from ...detection.fit import fit
from ...detection.recipes import RECIPES
from ...train.fit import Interrupted
from ...train.run import RunFolder
from ..train import RESUME_ME

DESCRIPTION = "Train a detector on annotations in COCO's or Pascal VOC's format."
EPILOG = """Examples:
  patnet detect train --recipe panels --data panels --weights runs/elpv --out runs/panels
  patnet detect train --recipe coco_1x_patnet_s --data /path/to/coco --weights runs/s --out runs/coco_s
  patnet detect train --data annotations.json --images pictures/ --start runs/coco_s --backbone patnet_s --out runs/mine
  patnet detect train --data VOCdevkit/VOC2012 --val_split val --detector faster_rcnn --out runs/voc
  patnet detect train --resume --out runs/panels

Ctrl-C stops a run at the end of a step, a second one at once, and --resume goes on with it. So do SIGTERM and SIGUSR1;
the exit code is then 75, which asks to be resumed.
torchrun --nproc-per-node 8 -m patnet detect train ... trains on 8 devices, as --devices 8 does."""

CONFIG = DetectConfig


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--recipe", type=str | None, default=None, help=f"{', '.join(sorted(RECIPES))}, or a YAML file."
    )
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out; needs no other option.")
    parser.add_class_arguments(DetectConfig)


def run(*, resume: bool, recipe: None, **options: Any) -> int:
    """Train, and say what to look at."""
    config = DetectConfig(**options)
    console = Console()
    folder = RunFolder(config.out)
    try:
        fitted = fit(config, resume=resume, console=console)
    except Interrupted as stopped:
        console.print(f"Interrupted. Go on with: patnet detect train --resume --out {config.out}", highlight=False)
        return 130 if stopped.wish == signal.SIGINT else RESUME_ME
    best = fitted.best
    found = [f"{kind} AP {best[key]:.3f}" for kind in ("box", "mask") if (key := f"val_{kind}_AP") in best]
    said = f", validation {', '.join(found)}" if found else ""
    console.print(f"Best epoch {best['epoch']} of {fitted.epochs}{said}.", highlight=False)
    console.print(
        f"Curves  {folder.curves}\nWeights {folder.best}\nNext    patnet detect evaluate {config.out}", highlight=False
    )
    return 0
