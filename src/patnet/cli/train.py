"""`patnet train`: a run in a run folder."""

import argparse
import json as jsonlib
import os
import signal
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..train.batch_size import say_memory
from ..train.config import TrainConfig
from ..train.fit import Interrupted, fit
from ..train.plan import plan as plan_run
from ..train.progress import say_time
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
  patnet train --plan --recipe patnet_t2 --data /path/to/imagenet
  patnet train --plan --recipe patnet_t2 --plan_pictures 1281167 --num_classes 1000

photos/ holds a folder for each class, or train/ and val/ with a folder for each class.
Ctrl-C stops a run at the end of a step, a second one at once, and --resume goes on with it. So do SIGTERM and SIGUSR1;
the exit code is then 75, which asks to be resumed.
torchrun --nproc-per-node 8 -m patnet train ... trains on 8 devices, as --devices 8 does; SLURM is understood too."""

CONFIG = TrainConfig

# Of a run that SIGTERM or SIGUSR1 stopped after a checkpoint: EX_TEMPFAIL, try again later.
RESUME_ME = os.EX_TEMPFAIL


class _Plan(argparse.Action):
    """Sets `plan`, and stands in for what a plan needs no more than training needs it."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace[self.dest] = True
        for name in ("data", "out"):
            if namespace.get(name) is None:
                namespace[name] = ""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--recipe", type=str | None, default=None, help=f"{', '.join(sorted(RECIPES))}, or a YAML file."
    )
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out; needs no other option.")
    parser.add_argument("--plan", action=_Plan, help="Say what the run will need and take, without training.")
    parser.add_argument("--plan_seconds", type=float, default=60.0, help="How long --plan measures.")
    parser.add_argument(
        "--plan_pictures",
        type=int | None,
        default=None,
        help="Plan for so many synthetic training pictures of --num_classes classes, in place of --data.",
    )
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON.")
    parser.add_class_arguments(TrainConfig)


def run(
    *,
    resume: bool,
    recipe: None,
    plan: bool,
    plan_seconds: float,
    plan_pictures: int | None,
    json: bool,
    **options: Any,
) -> int:
    """Train, and say what to look at; or plan."""
    config = TrainConfig(**options)
    if plan:
        if not config.data and plan_pictures is None:
            raise InputError("--plan: give --data too, or --plan_pictures and --num_classes for a data set not there")
        planned = plan_run(config, seconds=plan_seconds, pictures=plan_pictures, console=Console(stderr=True))
        if json:
            print(jsonlib.dumps(planned, indent=2))
        else:
            _print_plan(planned)
        return 0
    if json or plan_pictures is not None:
        raise InputError("--json and --plan_pictures: are for --plan; give it too, or leave them out")
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
    # What learned from masks tells no classes apart, but is to be started from.
    following = f"patnet train --weights {config.out} ..." if "val_kinds" in best else f"patnet evaluate {config.out}"
    console.print(f"Curves  {folder.curves}\nWeights {folder.best}\nNext    {following}", highlight=False)
    return 0


def _print_plan(planned: dict[str, Any]) -> None:
    console = Console()
    on_cpu = planned["device"] == "cpu"
    lines = Table.grid(padding=(0, 2))
    pictures = f"{planned['training_pictures']:,} for training, {planned['validation_pictures']:,} for validation"
    rows = [
        ("Data", planned["data"] or "synthetic pictures in memory, in place of a data set; storage is not measured"),
        ("Pictures", f"{pictures}, {planned['classes']:,} classes"),
        ("Epochs", f"{planned['epochs']:,} of {planned['steps_per_epoch']:,} steps"),
        ("In all", f"{planned['steps']:,} steps, {planned['pictures']:,} pictures"),
        ("Sharing", planned["sharing"]),
        ("Model", f"{planned['model']}, {planned['parameters']:,} parameters, {planned['gmacs']:.3f} GMACs"),
        ("Device", f"{planned['device']}, {planned['precision']}"),
        ("Memory", f"{say_memory(planned['memory'])} {'of the process' if on_cpu else 'per device'} at its peak"),
    ]
    if planned["worker_memory"]:
        each = say_memory(planned["worker_memory"])
        rows.append(("Loading", f"{planned['workers']} processes with {each} each to themselves"))
    for label, text in rows:
        lines.add_row(label, text)
    console.print(lines, highlight=False)
    speeds = Table(title=f"Measured, images/s on one device; {planned['limit']} limits")
    for heading in ("size, px", "epochs", "loading alone", "computing alone", "both together"):
        speeds.add_column(heading, justify="right")
    for phase in planned["phases"]:
        rates = (f"{phase[name]:,.1f}" for name in ("loading", "computing", "together"))
        speeds.add_row(str(phase["size"]), str(phase["epochs"]), *rates)
    console.print(speeds)
    times = Table(title="Time of the run, extrapolated")
    times.add_column("devices", justify="right")
    times.add_column("sharing")
    for heading in ("with loading as here", "if loading keeps up", "to load, images/s"):
        times.add_column(heading, justify="right")
    for row in planned["estimates"]:
        seconds = [say_time(row[name]) for name in ("seconds_as_measured", "seconds_computing")]
        times.add_row(str(row["devices"]), row["sharing"], *seconds, f"{row['loading_needed']:,.0f}")
    console.print(times)
    console.print(f"Assumed: {planned['assumption']}", highlight=False)
    for warning in planned["warnings"]:
        console.print(f"Warning: {warning}", highlight=False)
