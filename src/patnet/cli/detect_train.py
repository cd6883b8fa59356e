"""`patnet detect train`: a training run of a detector."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..detection.config import DetectConfig
from ..detection.recipes import RECIPES as RECIPES
from ..detection.training import train
from ..errors import InputError
from .train import train_and_report

SUMMARY = "Train a detector on annotations of COCO, Pascal VOC, YOLO or LabelMe."
EXAMPLES = """Examples:
  patnet detect train --recipe coco_1x_patnet_s --data /path/to/coco --weights runs/s --out runs/coco_s
  patnet detect train --data annotations.json --images images/ --detector-weights runs/coco_s --backbone patnet_s
    --out runs/mine
  patnet detect train --data yolo/ --backbone tf_efficientnet_lite2 --weights efficientnet-lite2 --detector retinanet
    --out runs/lite
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


def run(config: DetectConfig, *, resume: bool = False, given: Collection[str] = ()) -> int:
    """Train, and print the result.

    Args:
        config: Options of the run.
        resume: Resume the run in --out; needs no other option.
        given: Names of the options on the command line.
    """
    config = _without_splits_of_files(config, given)
    strict = "warmup_steps" in given
    return train_and_report(
        lambda console: train(config, resume=resume, strict_warmup=strict, console=console),
        "patnet detect train",
        config.out,
    )


def _without_splits_of_files(config: DetectConfig, given: Collection[str]) -> DetectConfig:
    """The options without a recipe's validation split where the annotations are a file, which has no splits.

    Raises:
        InputError: If the command line gives a split of a file.
    """
    val_source = config.val_data or config.data
    for option, source in (("train_split", config.data), ("val_split", val_source)):
        if option in given and Path(source).is_file():
            flag, value = option.replace("_", "-"), getattr(config, option)
            raise InputError(f"--{flag} {value}: {source} is a file, which has no splits; leave it out")
    return replace(config, val_split=None) if Path(val_source).is_file() else config
