"""Training: a Lightning run in a run folder."""

import logging
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console
from timm.data import resolve_data_config
from torch.utils.data import DataLoader, IterableDataset

from ..data import DataSplits, eval_transform, open_data, train_transform
from ..errors import InputError
from ..models.checkpoint import load_weights, read_checkpoint
from .classifier import Classifier, build_model
from .config import TrainConfig
from .progress import RunProgress
from .run import RunFolder, RunRecorder

__all__ = ["Fitted", "Interrupted", "fit", "make_trainer", "open_run_data"]


class Interrupted(Exception):
    """The run was interrupted; it can be resumed."""


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


def _loader(dataset: Any, config: TrainConfig, *, train: bool) -> DataLoader:
    iterable = isinstance(dataset, IterableDataset)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        shuffle=train and not iterable,
        drop_last=train and not iterable and len(dataset) > config.batch_size,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=config.accelerator != "cpu",
    )


def make_trainer(accelerator: str, devices: str, **kwargs: Any) -> L.Trainer:
    """A Lightning trainer that keeps its remarks on the machine to itself.

    Raises:
        InputError: If there is no such device, or it does not know the precision.
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
    ):
        warnings.filterwarnings("ignore", message=message)
    try:
        return L.Trainer(
            accelerator=accelerator,
            devices=int(devices) if devices.isdigit() else devices,
            enable_model_summary=False,
            **kwargs,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--accelerator {accelerator} --devices {devices}: cannot be used here ({reason}); try --accelerator cpu"
        ) from error


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
    config.check()
    folder = RunFolder(config.out)
    main_process = getattr(rank_zero_only, "rank", 0) == 0
    if resume:
        changed = folder.read_config().differences(config)
        if changed:
            raise InputError(f"{folder.path}: cannot go on with other options ({'; '.join(changed)}); leave them out")
    elif main_process and folder.config.exists():
        folder.start(config)  # says why it cannot

    L.seed_everything(config.seed, workers=True, verbose=False)
    splits = open_run_data(config)
    data_config = _data_config(config, splits)
    try:
        splits.train.transform = train_transform(
            data_config,
            min_area=config.min_area,
            hflip=config.hflip,
            vflip=config.vflip,
            quarter_turns=config.quarter_turns,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            random_erase=config.random_erase,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(
            f"--auto_augment {config.auto_augment}: timm has no such policy; try rand-m7-mstd0.5-inc1"
        ) from error
    if splits.val is not None:
        splits.val.transform = eval_transform(data_config)
    try:
        model = build_model(config, len(splits.class_names))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {config.model}: does not take these options ({error})") from error
    if config.weights and not resume:
        load_weights(model, config.weights)
    checkpoint = folder.checkpoint if resume and folder.checkpoint.is_file() else None
    if checkpoint:
        read_checkpoint(checkpoint)  # a damaged or hostile one is refused here, in a sentence
    recorder = RunRecorder(
        folder, data_config, splits.class_names, f"{config.model} on {config.data}, {config.size} px"
    )
    trainer = make_trainer(
        config.accelerator,
        config.devices,
        precision=config.precision,
        max_epochs=config.epochs,
        gradient_clip_val=config.clip_grad,
        default_root_dir=folder.path,
        logger=TensorBoardLogger(folder.path, name="", version=folder.tensorboard.name),
        callbacks=[
            recorder,
            RunProgress(console),
            ModelCheckpoint(
                dirpath=folder.checkpoint.parent,
                filename=folder.checkpoint.stem,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ],
        num_sanity_val_steps=0,
        limit_val_batches=None if splits.val is not None else 0,
        log_every_n_steps=10,
    )
    if main_process and not resume:
        folder.start(config)
    module = Classifier(model, config)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            _loader(splits.train, config, train=True),
            _loader(splits.val, config, train=False) if splits.val is not None else None,
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit as stopped:
        if trainer.interrupted:
            signal.signal(signal.SIGINT, on_interrupt)  # Lightning leaves Ctrl-C ignored
            raise Interrupted(str(folder.path)) from stopped
        raise
    return Fitted(folder, recorder.best_epoch(), len(recorder.history))


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
