"""`patnet train`: a run in a run folder."""

import os
import signal
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from ..train.config import TrainConfig
from ..train.fit import Interrupted, fit
from ..train.recipes import RECIPES
from ..train.run import RunFolder

DESCRIPTION = "Train a model on ELPV, on a folder of photographs, or on any data set that timm reads."
EPILOG = """Examples:
  patnet train --data elpv --out runs/first --size 96 --epochs 12
  patnet train --data photos/ --out runs/mine --model patnet_t1 --weights runs/first
  patnet train --recipe patnet_t2 --data /path/to/imagenet --out runs/t2
  patnet train --config runs/first/config.yaml --out runs/again --seed 1
  patnet train --data elpv --out runs/wide --model_args.partial_ratio 0.5 --model_args.spatial_attn none
  patnet train --resume --out runs/first

photos/ holds a folder for each class, or train/ and val/ with a folder for each class.
Ctrl-C stops a run at the end of a step, a second one at once, and --resume goes on with it. So do SIGTERM and SIGUSR1;
the exit code is then 75, which asks to be resumed.
torchrun --nproc-per-node 8 -m patnet train ... trains on 8 devices, as --devices 8 does; SLURM is understood too."""

# Of a run that SIGTERM or SIGUSR1 stopped after a checkpoint: EX_TEMPFAIL, try again later.
RESUME_ME = os.EX_TEMPFAIL


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--recipe", type=str | None, default=None, help=f"{', '.join(sorted(RECIPES))}, or a YAML file."
    )
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out; needs no other option.")
    parser.add_class_arguments(TrainConfig)


def run(*, resume: bool, recipe: None, **options: Any) -> int:
    """Train, and say what to look at."""
    config = TrainConfig(**options)
    console = Console()
    folder = RunFolder(config.out)
    try:
        fitted = fit(config, resume=resume, console=console)
    except Interrupted as stopped:
        console.print(f"Interrupted. Go on with: patnet train --resume --out {config.out}", highlight=False)
        return 130 if stopped.wish == signal.SIGINT else RESUME_ME
    best = fitted.best
    accuracy = f", validation top-1 {100 * best['val_top1']:.1f} %" if "val_top1" in best else ""
    console.print(f"Best epoch {best['epoch']} of {fitted.epochs}{accuracy}.", highlight=False)
    console.print(
        f"Curves  {folder.curves}\nWeights {folder.best}\nNext    patnet evaluate {config.out}", highlight=False
    )
    return 0
