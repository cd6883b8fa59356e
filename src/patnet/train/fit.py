"""Training: a Lightning run in a run folder."""

import logging
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from timm.data import resolve_data_config
from torch.utils.data import IterableDataset

from ..data import DataSplits, eval_transform, open_data, train_transform
from ..data.loading import SeededPictures, StreamLoader, TrainBatches, TrainLoader, eval_loader, order_of, seed_all
from ..errors import InputError
from ..models.checkpoint import load_weights, save_checkpoint
from .batch_size import available_memory, settle_batch_size, too_many_workers
from .batching import Batching, work_out
from .checkpoints import Checkpoints, SafeCheckpointIO, Stopped, newest_checkpoint
from .classifier import Classifier, build_model
from .config import RunConfig, TrainConfig
from .distillation import load_teacher
from .figures import draw_curves
from .localizer import Localizer
from .module import RunModule
from .progress import RunProgress
from .run import RunFolder, RunLock, RunRecorder
from .same_data import SameData
from .sharding import sharding_strategy
from .unreadable import Unreadable

__all__ = ["Fitted", "Interrupted", "fit", "make_trainer", "open_run_data", "too_few_steps"]

FEW_STEPS = 200  # in which random weights learn next to nothing


class Interrupted(Exception):
    """The run was interrupted; it can be resumed.

    Args:
        folder: Of the run.
        wish: The signal that asked for it.
    """

    def __init__(self, folder: str, wish: signal.Signals = signal.SIGINT) -> None:
        super().__init__(folder)
        self.wish = wish


@dataclass
class Fitted:
    """What a run came to."""

    folder: RunFolder
    best: dict[str, Any]
    epochs: int


def open_run_data(config: TrainConfig) -> DataSplits:
    """The data set of a run."""
    return open_data(
        config.data,
        in_chans=config.in_chans,
        data_root=config.data_root,
        train_split=config.train_split,
        val_split=config.val_split,
        val_fraction=config.val_fraction,
        num_classes=config.num_classes,
        cache_size=config.cache_size,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        seed=config.seed,
    )


def _labels(dataset: Any) -> list[int]:
    """The labels of a data set, without its pictures."""
    samples = getattr(dataset, "samples", None) or getattr(getattr(dataset, "reader", None), "samples", None)
    if samples is None:
        raise InputError("--balance: this data set does not tell its labels without its pictures; leave it out")
    return [int(label) for _, label in samples]


def _inverse_counts(labels: list[int], classes: int) -> torch.Tensor:
    """A weight for each class, in inverse proportion to its pictures, 1 on the average of the pictures."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp_min(1)
    return len(labels) / (classes * counts.float())


def _train_loader(
    splits: DataSplits, config: TrainConfig, batching: Batching, trainer: L.Trainer, transforms: Any
) -> Any:
    """What a process trains on."""
    options: dict[str, Any] = {
        "num_workers": config.workers,
        "persistent_workers": config.workers > 0,
        "pin_memory": config.accelerator != "cpu",
    }
    dataset: Any = splits.train
    if isinstance(dataset, IterableDataset):
        if config.balance == "sampling" or config.aug_repeats > 1:
            raise InputError(
                f"data set {config.data!r}: is a stream, so leave out --balance sampling and --aug_repeats"
            )
        pictures = len(splits.train)
        count = pictures // batching.whole * batching.accumulate
        if not count:
            raise InputError(f"data set {config.data!r}: its {pictures} pictures make no batch of {batching.whole}")
        options["persistent_workers"] = False  # each epoch has its own order
        return StreamLoader(dataset, config.seed, transforms, batches=count, batch_size=batching.per_device, **options)
    weights = None
    if config.balance == "sampling":
        labels = _labels(dataset)
        weights = _inverse_counts(labels, len(splits.class_names))[labels].tolist()
    batches = TrainBatches(
        order_of(len(dataset), config.seed, repeats=config.aug_repeats, weights=weights),
        len(dataset),
        batching.per_device,
        accumulate=batching.accumulate,
        world=trainer.world_size,
        rank=trainer.global_rank,
    )
    return TrainLoader(SeededPictures(dataset, config.seed, transforms, strict=config.strict), batches, **options)


def make_trainer(
    accelerator: str, devices: str, *, strategy: str = "auto", precision: Any = "32-true", **kwargs: Any
) -> L.Trainer:
    """A Lightning trainer that keeps its remarks on the machine to itself, and asks torchrun for the number of devices.

    Raises:
        InputError: If there is no such device, or it does not know the strategy or the precision.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",
        r".*'pin_memory' argument is set as true but no accelerator.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*LeafSpec.*",
        r".*have no `val_dataloader`.*",
        r".*number of training batches .* is smaller than the logging interval.*",
        r".*module.* in eval mode at the start of training.*",
        r".*It is recommended to use `self.log\(.*, sync_dist=True\)`.*",  # torchmetrics has summed up already
    ):
        warnings.filterwarnings("ignore", message=message)
    if TorchElasticEnvironment.detect():  # torchrun has started the processes already
        devices = os.environ["LOCAL_WORLD_SIZE"]
        kwargs["num_nodes"] = int(os.environ["WORLD_SIZE"]) // int(devices)
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=int(devices) if devices.isdigit() else devices,
            strategy=sharding_strategy() if strategy == "fsdp" else strategy,
            precision=precision,
            enable_model_summary=False,
            **kwargs,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        asked, remedy = f"--accelerator {accelerator} --devices {devices}", "--accelerator cpu"
        if strategy != "auto":
            asked += f" --strategy {strategy}"
            remedy = "--strategy auto"
        if precision != "32-true":
            asked += f" --precision {precision}"
            remedy += " or another --precision"
        raise InputError(f"{asked}: cannot be used here ({reason}); try {remedy}") from error


def fit(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Fitted:
    """Train a model and leave everything about it in the run folder `config.out`.

    Args:
        config: The options of the run.
        resume: Go on with the run in that folder, from the last epoch that it finished.
        console: Where to show progress.

    Raises:
        InputError: If the options, the data or the folder cannot be used.
        Interrupted: On Ctrl-C, after the run was left so that it can be resumed.
    """
    console = console or Console()
    folder = take_folder(config, resume=resume)
    seed_all(config.seed)
    splits = open_run_data(config)
    data_config = _data_config(config, splits)
    checkpoint, damaged = newest_checkpoint(folder.checkpoint) if resume else (None, [])
    title = f"{config.model} on {config.data}, {config.size} px"
    recorder = RunRecorder(
        folder,
        measured=("train_loss", "train_top1", "train_kinds", "val_loss", "val_top1", "val_top5", "val_kinds"),
        merit=lambda row: (row.get("val_top1", 0), -row["val_loss"]) if "val_loss" in row else None,
        draw=partial(draw_curves, title=title),
        save=partial(save_checkpoint, data_config=data_config, label_names=splits.class_names),
    )
    trainer = run_trainer(
        config,
        folder,
        [same_data(splits), recorder, RunProgress(console, recorder, _say_validated)],
        validate=splits.val is not None,
    )
    config = settle_batch_size(config, trainer.world_size, len(splits.class_names), len(splits.train), console)
    batching = work_out(config, trainer.world_size)
    trainer.accumulate_grad_batches = batching.accumulate
    try:
        transforms = [(0, _train_transform(config, data_config))]
        if config.early_epochs and config.early_size:
            early = {**data_config, "input_size": (config.in_chans, config.early_size, config.early_size)}
            transforms = [(0, _train_transform(config, early)), (config.early_epochs, transforms[0][1])]
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"--auto_augment {config.auto_augment}: timm has no such policy; try rand-m7-mstd0.5-inc1"
        ) from error
    train_loader = _train_loader(splits, config, batching, trainer, transforms)
    val_loader = None
    if splits.val is not None:
        splits.val.transform = eval_transform(data_config)
        val_loader = eval_loader(
            splits.val,
            batching.per_device,
            world=trainer.world_size,
            rank=trainer.global_rank,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
        )
    classes = len(splits.class_names)
    seed_all(config.seed)
    try:
        model = build_model(config, classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {config.model}: does not take these options ({error})") from error
    if config.weights and not checkpoint:
        load_weights(model, config.weights)
    module = build_module(model, config, splits, data_config)
    if not resume:
        start_folder(folder, config)
    steps = config.epochs * max(1, len(splits.train) // batching.whole)
    say_start(console, config, batching, damaged, checkpoint, too_few_steps(steps, config.weights))
    run_fit(trainer, module, batching, train_loader, val_loader, folder, checkpoint)
    return Fitted(folder, recorder.best_epoch(), len(recorder.history))


def build_module(model: Any, config: TrainConfig, splits: DataSplits, data_config: Mapping[str, Any]) -> Classifier:
    """What trains a model on a data set: on its classes, or on its masks.

    Raises:
        InputError: If an option does not go with the data set.
    """
    normalisation = {"mean": data_config["mean"], "std": data_config["std"]}
    if splits.masks:
        return Localizer(model, config, **normalisation)
    classes = len(splits.class_names)
    return Classifier(
        model,
        config,
        teacher=load_teacher(config.teacher, classes, config.in_chans) if config.teacher else None,
        class_weights=_inverse_counts(_labels(splits.train), classes) if config.balance == "weights" else None,
        **normalisation,
    )


def is_main_process() -> bool:
    """Whether this is the first process of a run, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def take_folder(config: RunConfig, *, resume: bool) -> RunFolder:
    """The folder of a run, after the first look at its options.

    Raises:
        InputError: If the options or the folder cannot be used, or a resumed run has others.
    """
    config.check()
    folder = RunFolder(config.out)
    if resume:
        if is_main_process() and folder.is_held():
            raise InputError(f"{folder.path}: another process is training this run; wait for its end, or stop it first")
        changed = folder.read_config(type(config)).differences(config)
        if changed:
            raise InputError(f"{folder.path}: cannot go on with other options ({'; '.join(changed)}); leave them out")
    else:
        start_folder(folder, config, now=False)
    return folder


def start_folder(folder: RunFolder, config: RunConfig, *, now: bool = True) -> None:
    """Make the folder of a new run in the first process; not `now`, say why it cannot be where it holds a run."""
    if is_main_process() and (now or folder.config.exists()):
        folder.start(config)


def run_trainer(config: RunConfig, folder: RunFolder, callbacks: Sequence[Callback], *, validate: bool) -> L.Trainer:
    """The Lightning trainer of a run, which writes what it needs for a resumption.

    Raises:
        InputError: If there is no such device, or it does not know the precision.
    """
    loggers: list[Any] = [TensorBoardLogger(folder.path, name="", version=folder.tensorboard.name)]
    if config.wandb:
        loggers.append(_wandb_logger(config, folder))
    return make_trainer(
        config.accelerator,
        config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        sync_batchnorm=config.sync_batchnorm,
        precision=config.precision,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_grad,
        default_root_dir=folder.path,
        logger=loggers,
        callbacks=[
            RunLock(folder),
            *callbacks,
            Unreadable(folder.unreadable, config.max_unreadable),
            Checkpoints(folder.checkpoint, config.checkpoint_minutes),
        ],
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=None if validate else 0,
        log_every_n_steps=10,
    )


def too_few_steps(steps: int, weights: str | None) -> list[str]:
    """A warning if a whole run from random weights has so few steps that little can come of it, else none."""
    if weights or steps >= FEW_STEPS:
        return []
    return [
        f"{steps} steps in all are few to learn anything in from random weights; more --epochs or a smaller "
        "--batch_size make more of them, and --weights starts from trained ones"
    ]


def say_start(
    console: Console,
    config: RunConfig,
    batching: Batching,
    damaged: Sequence[str],
    checkpoint: Path | None,
    notices: Sequence[str] = (),
) -> None:
    """Say in the first process what is to be known before the first step."""
    if not is_main_process():
        return
    for sentence in damaged:
        console.print(f"{sentence}; going on from {checkpoint}", highlight=False)
    if batching.devices * batching.accumulate > 1:
        console.print(str(batching), highlight=False)
    # A process that loads ends up with a copy of what this one holds.
    workers = too_many_workers(config.workers, psutil.Process().memory_full_info().uss, available_memory())
    for warning in (*notices, *workers):
        console.print(f"Warning: {warning}", highlight=False)


def run_fit(
    trainer: L.Trainer,
    module: RunModule,
    batching: Batching,
    train_loader: Any,
    val_loader: Any,
    folder: RunFolder,
    checkpoint: Path | None,
) -> None:
    """Train, from a checkpoint or from the start.

    Raises:
        InputError: If the checkpoint is of a run with another global batch.
        Interrupted: On Ctrl-C, SIGTERM and SIGUSR1, after the run was left so that it can be resumed.
    """
    module.batching = batching
    if checkpoint:
        # Lightning would do it, but asks for the number of steps, and so for the first batch, before it does.
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        position = dict(saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
        there = Batching(**saved["batching"]) if "batching" in saved else batching
        if there.whole != batching.whole:
            raise InputError(
                f"{folder.path}: its steps are of {there.whole} pictures ({there}), here they would be of "
                f"{batching.whole} ({batching}); go on with as many devices, or start with a --global_batch_size"
            )
        position["given"] = batching.batches(there, position["given"])
        train_loader.load_state_dict(position)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, train_loader, val_loader, ckpt_path=checkpoint, weights_only=True)
    except Stopped as stopped:
        raise Interrupted(str(folder.path), stopped.wish) from stopped
    except SystemExit as stopped:
        if trainer.interrupted:
            signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves Ctrl-C ignored
            raise Interrupted(str(folder.path)) from stopped
        raise


def same_data(splits: DataSplits) -> SameData:
    """Compares what the processes of a run see of its data set."""
    samples: Any = getattr(splits.train, "samples", [])
    return SameData(splits.class_names, [f"{path.name} {label}" for path, label in samples], len(splits.train))


def _say_validated(measured: Mapping[str, float]) -> list[str]:
    """What the validation of an epoch came to."""
    said = []
    if "val_loss" in measured:
        said.append(f"val loss {measured['val_loss']:.3f}")
    if "val_top1" in measured:
        said.append(f"val top-1 {100 * measured['val_top1']:.1f} %")
    if "val_kinds" in measured:
        said.append(f"val kinds {100 * measured['val_kinds']:.1f} %")
    if "val_top5" in measured:
        said.append(f"top-5 {100 * measured['val_top5']:.1f} %")
    return said


def _train_transform(config: TrainConfig, data_config: dict[str, Any]) -> Any:
    return train_transform(
        data_config,
        min_area=config.min_area,
        hflip=config.hflip,
        vflip=config.vflip,
        quarter_turns=config.quarter_turns,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        random_erase=config.random_erase,
    )


def _wandb_logger(config: RunConfig, folder: RunFolder) -> Any:
    """The logger of a run, which goes on with what it logged before where the run is resumed."""
    try:
        return WandbLogger(project=config.wandb, save_dir=config.out, name=folder.path.name, id=folder.wandb_id())
    except ModuleNotFoundError as error:
        raise InputError(f"--wandb {config.wandb}: wandb is not installed; pip install wandb") from error


def _data_config(config: TrainConfig, splits: DataSplits) -> dict[str, Any]:
    """Preprocessing of the run: the model's own, at the run's size, with the data set's brightness where it has one."""
    channels = config.in_chans
    defaults = resolve_data_config({"in_chans": channels}, pretrained_cfg={})
    mean, std = defaults["mean"], defaults["std"]
    if splits.mean is not None and splits.std is not None:
        mean, std = (splits.mean,) * channels, (splits.std,) * channels
    elif channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return {
        "input_size": (channels, config.size, config.size),
        "interpolation": "bicubic",
        "mean": tuple(mean),
        "std": tuple(std),
        "crop_pct": config.crop_pct,
        "crop_mode": "center",
    }
