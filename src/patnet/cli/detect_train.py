"""`patnet detect train`: a training run of a detector."""

import os
import signal

from rich.console import Console

from ..detection.config import DetectConfig
from ..detection.recipes import RECIPES as RECIPES
from ..detection.training import train
from ..train import Interrupted

SUMMARY = "Train a detector on annotations in COCO's or Pascal VOC's format."
EXAMPLES = """Examples:
  patnet detect train --recipe coco_1x_patnet_s --data /path/to/coco --weights runs/s --out runs/coco_s
  patnet detect train --data annotations.json --images images/ --detector-weights runs/coco_s --backbone patnet_s
    --out runs/mine
  patnet detect train --data VOCdevkit/VOC2012 --val-split val --detector faster_rcnn --out runs/voc
  patnet detect train --data annotations.json --width 64 --min-size 320 --max-size 320 --out runs/small
  patnet detect train --resume --out runs/mine

Ctrl-C stops a run at the end of a step, a second one at once, and --resume continues it. So do SIGTERM and SIGUSR1;
the exit code is then 75.
torchrun --nproc-per-node 8 -m patnet detect train ... trains on 8 devices, as --devices 8 does."""
EXTRA = (
    "detection",
    ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich", "faster_coco_eval", "pycocotools"),
)
CONFIG = DetectConfig


def run(config: DetectConfig, *, resume: bool = False, given: frozenset[str] = frozenset()) -> int:
    """Train, and print the result.

    Args:
        config: Options of the run.
        resume: Resume the run in --out; needs no other option.
        given: Names of the options on the command line.
    """
    console = Console(highlight=False)
    try:
        result = train(config, resume=resume, strict_warmup="warmup_steps" in given, console=console)
    except Interrupted as stopped:
        console.print(f"Interrupted. Resume with: patnet detect train --resume --out {config.out}")
        return 130 if stopped.signal == signal.SIGINT else os.EX_TEMPFAIL
    best = result.best
    found = [
        f"{iou_type} AP {best[f'val_{iou_type}_AP']:.3f}"
        for iou_type in ("box", "mask")
        if f"val_{iou_type}_AP" in best
    ]
    console.print(
        f"Best epoch {best['epoch']} of {result.epochs}" + "".join(f", validation {ap}" for ap in found) + "."
    )
    console.print(
        f"Curves  {result.run.curves}\nWeights {result.run.best}\nNext    patnet detect evaluate {config.out}"
    )
    return 0
