"""What a run will need and take, from steps that are measured without training it."""

import io
import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import numpy as np
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from ..data import DataSplits
from ..errors import InputError
from .batch_size import available_memory, peak_memory, settle_batch_size, too_many_workers
from .batching import Batching, work_out
from .classifier import build_model
from .config import TrainConfig
from .fit import (
    _data_config,
    _train_loader,
    _train_transform,
    build_module,
    make_trainer,
    open_run_data,
    too_few_steps,
)
from .progress import progress_bar

__all__ = ["ASSUMPTION", "SyntheticPictures", "plan"]

DEVICES = (1, 8, 64)  # that the time is extrapolated to
WARM_UP = 2  # batches before the clock starts
SIZE = (500, 375)  # px, as ImageNet's pictures on the average
ASSUMPTION = (
    "Linear scaling: every device is as fast as this one with the same batch, and nothing is lost in communication; "
    "validation pictures count as training pictures do; starting, saving and drawing are left out."
)


class SyntheticPictures(Dataset):
    """Pictures of a data set that is not there: smooth noise as JPEG, decoded and augmented as real ones are.

    Args:
        count: How many.
        classes: Labels are below this.
        mode: `"RGB"` or `"L"`.
    """

    def __init__(self, count: int, classes: int, mode: str) -> None:
        self.count, self.classes, self.transform = count, classes, None
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(16):
            coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize(SIZE)
            content = io.BytesIO()
            coarse.convert(mode).save(content, "JPEG", quality=95)
            self.files.append(content.getvalue())

    @property
    def samples(self) -> list[tuple[str, int]]:
        """The labels, beside files that are not there."""
        return [("", index % self.classes) for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.open(io.BytesIO(self.files[index % len(self.files)]))
        return self.transform(picture) if self.transform else picture, index % self.classes


@dataclass
class Phase:
    """Epochs of one size of pictures, and rates in images/s: loading alone, computing alone, and both together."""

    size: int
    epochs: int
    loading: float = 0.0
    computing: float = 0.0
    together: float = 0.0


class _Clock(Callback):
    """Stops training after so many seconds, and knows the rate then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches, self.pictures, self.start, self.rate = 0, 0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, once the first ones are over."""
        cuda = trainer.strategy.root_device.type == "cuda"
        self.batches += 1
        if self.batches == WARM_UP:
            if cuda:
                torch.cuda.synchronize()
            self.start = time.monotonic()
        elif self.batches > WARM_UP and not self.rate:
            self.pictures += len(batch[1])
            if time.monotonic() - self.start >= self.seconds:
                if cuda:
                    torch.cuda.synchronize()
                self.rate = self.pictures / (time.monotonic() - self.start)
                trainer.should_stop = True


class _Again:
    """The same batches over and over."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(self.batches)


def _epochs_of(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _loading_rate(loader: Any, seconds: float) -> tuple[float, list[Any], int]:
    """Images/s, some batches to go on with, and the memory in bytes that each loader process has to itself."""
    batches = _epochs_of(loader)
    kept = [next(batches) for _ in range(WARM_UP)]
    pictures, start = 0, time.monotonic()
    while True:
        pictures += len(next(batches)[1])
        elapsed = time.monotonic() - start
        if elapsed >= seconds:
            break
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    memory = [worker.memory_full_info().uss for worker in workers]
    return pictures / elapsed, kept, max(memory, default=0)


def _training_rate(module: L.LightningModule, loader: Iterable[Any], config: TrainConfig, seconds: float) -> float:
    """Images/s of whole steps on one device."""
    clock = _Clock(seconds)
    trainer = make_trainer(
        config.accelerator,
        "1",
        precision=config.precision,
        max_epochs=-1,
        max_steps=10**9,
        gradient_clip_val=config.clip_grad,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(module, loader)
    except SystemExit as stopped:
        if trainer.interrupted:
            raise KeyboardInterrupt from stopped
        raise
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--batch_size {config.batch_size}: does not fit on the device; --batch_size auto finds what does"
        ) from error
    return clock.rate


def _size_of(model: nn.Module, config: TrainConfig) -> tuple[int, float]:
    """Parameters, and GMACs for a picture of the run's size."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, config.in_chans, config.size, config.size))
    model.train()
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def plan(
    config: TrainConfig, *, seconds: float = 60.0, pictures: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Measure what a run will need and take, on one device and without a run folder.

    Args:
        config: Options of the run.
        seconds: To measure for.
        pictures: Plan for so many synthetic training pictures of `config.num_classes` classes in place of the data.
        console: Where to show progress.

    Returns:
        Counts of pictures and steps, the model's size, `memory` in bytes of a device (on a CPU of the process), a
        `Phase` for each size of pictures, and `estimates` in s for several numbers of devices.

    Raises:
        InputError: If the options or the data cannot be used.
    """
    console = console or Console()
    config.check()
    if not seconds > 0 or (pictures is not None and pictures < 1):
        raise InputError("--plan_seconds and --plan_pictures: must be above 0")
    if pictures is not None:
        classes = config.num_classes or 1000
        mode = "L" if config.in_chans == 1 else "RGB"
        splits = DataSplits([str(i) for i in range(classes)], SyntheticPictures(pictures, classes, mode), None)
    else:
        splits = open_run_data(config)
    classes, count = len(splits.class_names), len(splits.train)
    validation = 0 if splits.val is None else len(splits.val)
    trainer = make_trainer(config.accelerator, "1", logger=False)
    device = trainer.strategy.root_device
    own = (
        int(config.devices)
        if config.devices.isdigit()
        else make_trainer(config.accelerator, config.devices).num_devices
    )
    own *= config.num_nodes
    config = settle_batch_size(config, own, classes, count, console)
    batching = work_out(config, own)
    data_config = _data_config(config, splits)
    try:
        model = build_model(config, classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {config.model}: does not take these options ({error})") from error
    parameters, gmacs = _size_of(model, config)
    module = build_module(model, config, splits, data_config)
    early = min(config.epochs, config.early_epochs if config.early_size else 0)
    phases = [Phase(config.early_size or 0, early), Phase(config.size, config.epochs - early)]
    phases = [phase for phase in phases if phase.epochs]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    free, worker_memory = available_memory(), 0
    measured = Batching(batching.per_device, 1, 1)
    with progress_bar(console) as bar:
        task = bar.add_task("", total=3 * len(phases))
        for phase in phases:
            of_size = {**data_config, "input_size": (config.in_chans, phase.size, phase.size)}
            transforms = [(0, _train_transform(config, of_size))]
            turn = seconds / len(phases)

            bar.update(task, description=f"{phase.size} px, loading alone")
            loader = _train_loader(splits, config, measured, trainer, transforms)
            phase.loading, kept, memory = _loading_rate(loader, turn / 4)
            worker_memory = max(worker_memory, memory)
            del loader
            bar.update(task, advance=1, description=f"{phase.size} px, computing alone")
            phase.computing = _training_rate(module, _Again(kept), config, turn / 4)
            bar.update(task, advance=1, description=f"{phase.size} px, both together")
            loader = _train_loader(splits, config, measured, trainer, transforms)
            phase.together = _training_rate(module, loader, config, turn / 2)
            bar.advance(task)
    steps = max(1, count // batching.whole)
    return {
        "data": config.data if pictures is None else None,
        "training_pictures": count,
        "validation_pictures": validation,
        "classes": classes,
        "epochs": config.epochs,
        "steps_per_epoch": steps,
        "steps": steps * config.epochs,
        "pictures": min(count, steps * batching.whole) * config.epochs,
        "global_batch": batching.whole,
        "sharing": str(batching),
        "model": config.model,
        "parameters": parameters,
        "gmacs": gmacs,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": config.precision,
        "memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory(),
        "workers": config.workers,
        "worker_memory": worker_memory,
        "phases": [asdict(phase) for phase in phases],
        "limit": "loading" if sum(p.epochs / p.loading - p.epochs / p.computing for p in phases) > 0 else "computing",
        "estimates": [_estimate(config, phases, count + validation, devices) for devices in sorted({*DEVICES, own})],
        "assumption": ASSUMPTION,
        "warnings": [
            *too_few_steps(steps * config.epochs, config.weights),
            *too_many_workers(config.workers, worker_memory, free),
        ],
    }


def _estimate(config: TrainConfig, phases: list[Phase], pictures: int, devices: int) -> dict[str, Any]:
    """The time on so many devices, in s, and the images/s that have to be loaded for them."""
    try:
        sharing = str(work_out(config, devices))
    except InputError as error:
        sharing = str(error)
    return {
        "devices": devices,
        "sharing": sharing,
        "seconds_as_measured": sum(p.epochs * pictures / p.together for p in phases) / devices,
        "seconds_computing": sum(p.epochs * pictures / p.computing for p in phases) / devices,
        "loading_needed": devices * max(p.computing for p in phases),
    }
