"""Training: `fit` runs any configuration, data and module in a run directory; `train` trains a classifier."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from rich.console import Console

from ..data import DataSplits
from ..data.batches import Batches, seed_all
from ..errors import InputError
from .batch_size import choose_batch_size
from .callbacks import Checkpoints, EarlyStopping, Interrupted, Recorder, UnreadableImages
from .classifier import Classifier, follow_weights
from .config import RunConfig, TrainConfig
from .data import ClassificationData, RunData, excess_workers
from .module import RunModule
from .run import RunDirectory, SafeCheckpointIO, interruptible, is_main_process, make_trainer


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        run: Its directory.
        best: The metrics of the best epoch.
        epochs: Number of epochs.
        summary: The validation results of the best epoch in words.
        held_out: Whether its data set has images to evaluate it on.
    """

    run: RunDirectory
    best: dict[str, Any]
    epochs: int
    summary: str
    held_out: bool


def train(
    config: TrainConfig, *, splits: DataSplits | None = None, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train a classifier, see `fit`; without other options images are normalised as those of the weights were.

    Args:
        config: Options of the run.
        splits: Images to train on in place of those of `config.data`.
        resume: Resume the run in its directory.
        console: Where to print.
    """
    config.check()
    if resume:
        stored: TrainConfig = RunDirectory(config.out).read_config()
        config = replace(config, **{k: getattr(config, k) or getattr(stored, k) for k in ("mean", "std")})
    else:
        config = follow_weights(config)
    return fit(config, ClassificationData(config, splits), partial(Classifier, config), resume=resume, console=console)


def fit(
    config: RunConfig,
    data: RunData,
    make_module: Callable[[Any, Path | None], RunModule],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Train a network in the run directory `config.out`, or resume the run there from its newest checkpoint.

    Args:
        make_module: Makes the module from the data, and from the checkpoint that is restored afterwards if any; only
            without one it may need the weights that a run starts from.

    Raises:
        InputError: If the options, the data or the directory cannot be used.
        Interrupted: On Ctrl-C, SIGTERM and SIGUSR1, after a checkpoint.
    """
    console = (console or Console()) if is_main_process() else Console(quiet=True)
    config.check()
    run = RunDirectory(config.out)
    run.check(config, resume=resume)
    checkpoint = run.newest_checkpoint(console) if resume else None

    place = {name: getattr(config, name) for name in ("accelerator", "devices", "num_nodes", "strategy", "precision")}
    devices = make_trainer(**place).world_size
    if config.batch_size == "auto":
        config = choose_batch_size(config, data, make_module, devices, console)
    data = data.with_batches(Batches.of(int(config.batch_size), config.global_batch_size, devices))
    seed_all(config.seed)
    module = make_module(data, checkpoint)
    data.train_loader()  # which raises before the run directory is created, as does the next
    module.configure_optimizers()

    recorder = Recorder(run, console)
    early: list[Callback] = []
    if config.patience:
        if data.val_dataloader() == []:
            raise InputError("--patience: needs validation images, which choose when to stop; see --val-fraction")
        early = [EarlyStopping(module.watched, config.patience)]
    unreadable = UnreadableImages(run.unreadable, config.max_unreadable, console)
    trainer = make_trainer(
        **place,
        sync_batchnorm=config.sync_bn,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_grad,
        accumulate_grad_batches=data.batches.accumulate,
        default_root_dir=config.out,
        callbacks=[*early, recorder, unreadable, Checkpoints(run.checkpoint, config.checkpoint_minutes)],
        plugins=[SafeCheckpointIO()],
        logger=[TensorBoardLogger(run.path, name="", version=run.tensorboard.name), *_wandb(config, run)],
        log_every_n_steps=10,
    )
    if not resume and is_main_process():
        run.create(config)
    batches = [str(data.batches)] if devices * data.batches.accumulate > 1 else []
    # A loader process ends up with a copy of what this one holds.
    memory = excess_workers(config.workers, psutil.Process().memory_full_info().uss)
    for line in [*data.notices(), *batches, *memory]:
        console.print(line, highlight=False)
    try:
        with run.lock(), interruptible(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except KeyboardInterrupt as stopped:
        raise Interrupted(signal.SIGINT) from stopped
    return RunResult(run, recorder.best, len(recorder.history), module.summary(recorder.best), data.held_out)


def _wandb(config: RunConfig, run: RunDirectory) -> list[Logger]:
    """The logger of Weights & Biases if there is a project, else none."""
    if not config.wandb_project:
        return []
    try:
        options: dict[str, Any] = {"project": config.wandb_project, "name": run.path.name, "id": run.wandb_id()}
        return [WandbLogger(save_dir=config.out, **options)]
    except ModuleNotFoundError as error:
        raise InputError(f"--wandb-project {config.wandb_project}: needs wandb: pip install wandb") from error
