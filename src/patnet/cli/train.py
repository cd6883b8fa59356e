"""`patnet train`: train a classifier in a run directory, or plan to."""

import json as jsonlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import InputError
from ..files import save_figure
from ..train import Interrupted, RunResult, TrainConfig, train
from ..train.callbacks import format_bytes, format_duration
from ..train.config import PositiveFloat, PositiveInt
from ..train.learning_rate import draw_range_test
from ..train.learning_rate import find_lr as range_test
from ..train.plan import plan as plan_run
from ..train.recipes import RECIPES as RECIPES
from ..train.run import is_main_process
from .parser import refuse_idle
from .tables import print_lines, print_table

SUMMARY = "Train a classifier on ELPV, on a folder of images, or on any data set that timm reads."
EXAMPLES = """Examples:
  patnet train --data elpv --out runs/first --img-size 96 --epochs 12
  patnet train --data images/ --out runs/mine --model patnet_t1 --weights runs/first
  patnet train --recipe patnet_t2 --data /path/to/imagenet --out runs/t2
  patnet train --config runs/first/config.yaml --out runs/again --seed 1
  patnet train --data elpv --out runs/wide --model-kwargs.partial_ratio 0.5 --model-kwargs.spatial_attn none
  patnet train --resume --out runs/first
  patnet train --plan --recipe patnet_t2 --data /path/to/imagenet
  patnet train --plan --recipe patnet_t2 --plan-images 1281167 --num-classes 1000

images/ holds a folder for each class, or train/ and val/ with a folder for each class.
Ctrl-C stops a run at the end of a step, a second one at once, and --resume continues it. So do SIGTERM and SIGUSR1;
the exit code is then 75 (try again later).
torchrun --nproc-per-node 8 -m patnet train ... trains on 8 devices, as --devices 8 does; SLURM is understood too."""
EXTRA = (
    "train",
    ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "psutil", "rich", "tensorboard", "filelock"),
)
CONFIG = TrainConfig
NOT_REQUIRED = {"plan": ("data", "out")}


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    plan: bool = False,
    plan_seconds: PositiveFloat = 60.0,
    plan_images: PositiveInt | None = None,
    find_lr: bool = False,
    json: bool = False,
    given: Collection[str] = (),
) -> int:
    """Train, or plan.

    Args:
        resume: Resume the run in --out; needs no other option.
        plan: Print what the run will need and take, without training.
        plan_seconds: How long --plan measures, in s.
        find_lr: Print the learning rate at which the loss falls fastest, without training, and draw it as OUT-lr.png.
        plan_images: Plan for a number of synthetic images of --num-classes classes, instead of --data.
        json: Print the plan as JSON.
    """
    if "warmup_epochs" in given and config.warmup != config.warmup_epochs:
        raise InputError(f"--warmup-epochs {config.warmup_epochs}: must be less than --epochs {config.epochs}")
    modes = {"--plan": plan, "--find-lr": find_lr, "--resume": resume}
    if sum(modes.values()) > 1:
        raise InputError(f"{' and '.join(mode for mode in modes if modes[mode])}: choose one")
    refuse_idle(
        given,
        {
            "--plan": (plan, ("plan_images", "plan_seconds", "json")),
            "--teacher": (bool(config.teacher), ("distillation", "distill_alpha", "distill_tau")),
            "--mixup or --cutmix": (bool(config.mixup or config.cutmix), ("mixup_prob", "mixup_switch_prob")),
        },
    )
    if plan:
        if not config.data and plan_images is None:
            raise InputError("--plan: give --data too, or --plan-images and --num-classes for a data set not here")
        planned = plan_run(config, seconds=plan_seconds, images=plan_images, console=Console(stderr=True))
        if json:
            print(jsonlib.dumps(planned, indent=2))
        else:
            _print_plan(planned)
        return 0
    if find_lr:
        suggested, results = range_test(config, console=Console(stderr=True))
        figure = save_figure(draw_range_test(results, suggested), Path(f"{Path(config.out)}-lr.png"))
        print_lines(f"Suggested --lr {suggested:.1e}, where the loss falls fastest; a third of it is safer", figure)
        return 0
    return train_and_report(lambda console: train(config, resume=resume, console=console), "patnet train", config.out)


def train_and_report(run: Callable[[Console], RunResult], command: str, out: str) -> int:
    """Train, and print the result or how to resume; gives the exit code."""
    console = Console(quiet=not is_main_process(), highlight=False, markup=False, soft_wrap=True)
    try:
        result = run(console)
    except Interrupted as stopped:
        console.print(f"Interrupted. Resume with: {command} --resume --out {out}")
        return stopped.exit_code
    validated = f": {result.summary}" if result.summary else ""
    console.print(f"Best epoch {result.best['epoch']} of {result.epochs}{validated}.")
    console.print(f"Curves  {result.run.curves}\nWeights {result.run.best}")
    following = f"evaluate {out}" if result.held_out else f"predict {out} IMAGES"
    console.print(f"Next    {command.removesuffix('train')}{following}")
    return 0


def _print_plan(planned: dict[str, Any]) -> None:
    images = f"{planned['training_images']:,} for training, {planned['validation_images']:,} for validation"
    memory = "of the process" if planned["device"] == "cpu" else "per device"
    lines = {
        "Data": planned["data"] or "synthetic images in memory instead of a data set; storage is not measured",
        "Images": f"{images}, {planned['classes']:,} classes",
        "Epochs": f"{planned['epochs']:,} of {planned['steps_per_epoch']:,} steps",
        "In total": f"{planned['steps']:,} steps, {planned['images']:,} images",
        "Batches": planned["batches"],
        "Model": f"{planned['model']}, {planned['parameters']:,} parameters, {planned['gmacs']:.3f} GMACs",
        "Device": f"{planned['device']}, {planned['precision']}",
        "Memory": f"{format_bytes(planned['memory'])} {memory} at its peak",
    }
    if planned["worker_memory"]:
        lines["Loading"] = f"{planned['workers']} loader processes of {format_bytes(planned['worker_memory'])} each"
    print_lines(*(f"{label:<9} {text}" for label, text in lines.items()))
    print_table(
        ("size, px", "epochs", "loading alone", "computing alone", "both together"),
        [
            (p["img_size"], p["epochs"], *(f"{p[name]:,.1f}" for name in ("loading", "computing", "together")))
            for p in planned["phases"]
        ],
        left=0,
        title=f"Measured, images/s on one device; limited by {planned['limit']}",
    )
    times = ("seconds_as_measured", "seconds_computing")
    print_table(
        ("batches", "devices", "with loading as here", "if loading keeps up", "to load, images/s"),
        [
            (e["batches"], e["devices"], *(format_duration(e[name]) for name in times), f"{e['loading_needed']:,.0f}")
            for e in planned["estimates"]
        ],
        title="Time of the run, extrapolated",
    )
    print_lines(f"Assumption: {planned['assumption']}", *planned["warnings"])
