"""Training: `fit` runs any configuration, data and module in a run directory; `train` trains a classifier."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import psutil
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from rich.console import Console

from ..data.batches import Batches, seed_all
from ..errors import InputError
from .batch_size import choose_batch_size
from .callbacks import Recorder, Unreadable
from .checkpoints import Checkpoints, Interrupted, SafeCheckpointIO, newest_checkpoint
from .classifier import make_classifier
from .config import RunConfig, TrainConfig
from .data import ClassificationData, RunData, excess_workers
from .distributed import interruptible, is_main_process, make_trainer
from .module import RunModule
from .progress import RunProgress
from .run import RunDirectory

__all__ = ["RunResult", "fit", "train"]


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        run: Its directory.
        best: The metrics of the best epoch.
        epochs: Number of epochs.
        summary: The validation results of the best epoch in words.
    """

    run: RunDirectory
    best: dict[str, Any]
    epochs: int
    summary: str


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> RunResult:
    """Train a classifier, see `fit`."""
    return fit(config, ClassificationData(config), partial(make_classifier, config), resume=resume, console=console)


def fit(
    config: RunConfig,
    data: RunData,
    make_module: Callable[[Any, Path | None], RunModule],
    *,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Train a network in the run directory `config.out`.

    Args:
        config: Options of the run.
        data: Data of the run.
        make_module: Makes the module from the data, and from the checkpoint that is restored afterwards if any; only
            without one it may need the weights that a run starts from.
        resume: Resume the run in that directory from its newest checkpoint.
        console: Where to print the progress.

    Raises:
        InputError: If the options, the data or the directory cannot be used.
        Interrupted: On Ctrl-C, SIGTERM and SIGUSR1, after a checkpoint.
    """
    console = (console or Console()) if is_main_process() else Console(quiet=True)
    config.check()
    run = RunDirectory(config.out)
    run.check(config, resume=resume)
    checkpoint = newest_checkpoint(run.checkpoint, console) if resume else None

    devices = _make_trainer(config, logger=False).world_size
    if config.batch_size == "auto":
        config = choose_batch_size(config, data, make_module, devices, console)
    data = data.with_batches(Batches.of(int(config.batch_size), config.global_batch_size, devices))
    seed_all(config.seed)
    module = make_module(data, checkpoint)
    data.train_loader()  # which raises before the run directory is created

    recorder = Recorder(run, console)
    callbacks = [
        recorder,
        RunProgress(console, recorder.speed),
        Unreadable(run.unreadable, config.max_unreadable),
        Checkpoints(run.checkpoint, config.checkpoint_minutes),
    ]
    accumulate = data.batches.accumulate
    trainer = _make_trainer(
        config, logger=_loggers(config, run), callbacks=callbacks, accumulate_grad_batches=accumulate
    )
    if not resume and is_main_process():
        run.create(config)
    for line in _notices(config, data):
        console.print(line, highlight=False)
    try:
        with run.lock(), interruptible(trainer):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except KeyboardInterrupt as stopped:
        raise Interrupted(signal.SIGINT) from stopped
    return RunResult(run, recorder.best, len(recorder.history), module.summary(recorder.best))


def _make_trainer(config: RunConfig, **kwargs: Any) -> L.Trainer:
    """The trainer of a run."""
    return make_trainer(
        config.accelerator,
        config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,
        sync_batchnorm=config.sync_bn,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_grad,
        default_root_dir=config.out,
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        **kwargs,
    )


def _loggers(config: RunConfig, run: RunDirectory) -> list[Any]:
    loggers: list[Any] = [TensorBoardLogger(run.path, name="", version=run.tensorboard.name)]
    if config.wandb_project:
        try:
            name, number = run.path.name, run.wandb_id()
            loggers.append(WandbLogger(project=config.wandb_project, save_dir=config.out, name=name, id=number))
        except ModuleNotFoundError as error:
            raise InputError(f"--wandb-project {config.wandb_project}: needs wandb: pip install wandb") from error
    return loggers


def _notices(config: RunConfig, data: RunData) -> list[str]:
    """What to know before the first step."""
    batches = [str(data.batches)] if data.batches.devices * data.batches.accumulate > 1 else []
    # A loader process ends up with a copy of what this one holds.
    return [*data.notices(), *batches, *excess_workers(config.workers, psutil.Process().memory_full_info().uss)]
