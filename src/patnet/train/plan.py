"""What a run will need and take, extrapolated from steps that are measured on one device."""

import copy
import io
import itertools
import multiprocessing
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from ..data.batches import Batches
from ..errors import InputError
from .batch_size import choose_batch_size, one_device, peak_memory, train_on
from .callbacks import progress_bar
from .classifier import Classifier, follow_weights
from .config import TrainConfig
from .data import ClassificationData, excess_workers
from .run import make_trainer

DEVICES = (1, 8, 64)  # to which the time is extrapolated
WARM_UP = 2  # batches before the clock starts
ASSUMPTION = (
    "linear scaling: every device is as fast as this one at the same batch size, communication costs nothing, "
    "validation images take as long as training images; starting, saving and drawing are not counted"
)


class SyntheticImages(Dataset):
    """Smooth noise as JPEG files of ImageNet's average size, in place of a data set.

    Args:
        count: Number of images.
        classes: Number of classes.
        mode: `"RGB"` or `"L"`.
    """

    def __init__(self, count: int, classes: int, mode: str) -> None:
        self.samples = [("", index % classes) for index in range(count)]
        rng = np.random.default_rng(0)
        self.files = [io.BytesIO() for _ in range(16)]
        for file in self.files:
            coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize((500, 375))
            coarse.convert(mode).save(file, "JPEG", quality=95)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.files[index % len(self.files)].getvalue())), self.samples[index][1]


@dataclass(frozen=True)
class Phase:
    """Epochs at one image size, with rates in images/s: loading alone, computing alone, and both together.

    `worker_memory` is the largest memory in bytes that a loader process has to itself.
    """

    img_size: int
    epochs: int
    loading: float
    computing: float
    together: float
    worker_memory: int


class _Clock(Callback):
    """Stops training after some seconds, and then has the rate in images/s."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches, self.images, self.start, self.rate = 0, 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch, after the first ones."""
        self.batches += 1
        if self.batches > WARM_UP:
            self.images += len(batch[1])
        if self.batches == WARM_UP or (self.images and time.monotonic() - self.start >= self.seconds):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            if self.batches == WARM_UP:
                self.start = time.monotonic()
            elif not self.rate:
                self.rate = self.images / (time.monotonic() - self.start)
                trainer.should_stop = True


def _loading_rate(loader: Any, seconds: float) -> tuple[float, list[Any], int]:
    """Images/s, some batches, and the largest memory in bytes that a loader process has to itself."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    kept = list(itertools.islice(batches, WARM_UP))
    images, start, elapsed = 0, time.monotonic(), 0.0
    while elapsed < seconds:
        images += len(next(batches)[1])
        elapsed = time.monotonic() - start
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    return images / elapsed, kept, max((worker.memory_full_info().uss for worker in workers), default=0)


def _training_rate(module: L.LightningModule, batches: Any, config: TrainConfig, seconds: float) -> float:
    """Images/s of complete steps on one device."""
    clock = _Clock(seconds)
    try:
        train_on(module, batches, config, max_epochs=-1, max_steps=10**9, callbacks=[clock])
    except torch.OutOfMemoryError as error:
        size = config.batch_size
        raise InputError(
            f"--batch-size {size}: does not fit on the device; --batch-size auto finds what does"
        ) from error
    return clock.rate


def _measure(module: L.LightningModule, data: ClassificationData, epochs: int, seconds: float, bar: Any) -> Phase:
    """Measure the epochs at one image size."""
    config = data.config
    task = bar.add_task(f"{config.img_size} px", total=3)
    loading, kept, memory = _loading_rate(data.train_loader(), seconds / 4)
    bar.advance(task)
    computing = _training_rate(module, itertools.cycle(kept), config, seconds / 4)
    bar.advance(task)
    together = _training_rate(module, data.train_loader(), config, seconds / 2)
    bar.advance(task)
    return Phase(config.img_size, epochs, loading, computing, together, memory)


def _estimate(config: Any, phases: list[Phase], images: int, devices: int) -> dict[str, Any]:
    """The time in s for epochs of `images` on a number of devices, and the images/s to load for them."""
    try:
        batches = str(Batches.of(config.batch_size, config.global_batch_size, devices))
    except InputError as error:
        batches = str(error)
    return {
        "devices": devices,
        "batches": batches,
        "seconds_as_measured": sum(p.epochs * images / p.together for p in phases) / devices,
        "seconds_computing": sum(p.epochs * images / p.computing for p in phases) / devices,
        "loading_needed": devices * max(p.computing for p in phases),
    }


def plan(
    config: TrainConfig, *, seconds: float = 60.0, images: int | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Measure what a run will need and take, on one device and without a run directory.

    Args:
        config: Options of the run; `devices` and `num_nodes` are those to plan for.
        seconds: How long to measure.
        images: Number of synthetic training images of `config.num_classes` classes, in place of the data set.
        console: Where to show the progress.

    Returns:
        Numbers of images and steps, the model's size, `memory` in bytes of the device (on a CPU of the process), a
        `Phase` for each image size, and `estimates` in s for several numbers of devices.

    Raises:
        InputError: If the options or the data cannot be used.
    """
    console = console or Console()
    config.check()
    config = follow_weights(config)
    splits = None
    if images is not None:
        names = [str(i) for i in range(config.num_classes or 1000)]
        mode = "L" if config.in_chans == 1 else "RGB"
        splits = DataSplits(names, SyntheticImages(images, len(names), mode), None)
    data, make_module = ClassificationData(config, splits), partial(Classifier, config)
    local = config.devices if config.devices.isdigit() else make_trainer(config.accelerator, config.devices).num_devices
    devices = int(local) * config.num_nodes
    if config.batch_size == "auto":
        config = choose_batch_size(config, data, make_module, devices, console)
    data = data.with_batches(Batches.of(int(config.batch_size), config.global_batch_size, devices))
    module = make_module(data, None)
    gmacs = _gmacs(module.model, config)  # before the module is on the device
    early = min(config.epochs, config.progressive_epochs)
    sizes: list[tuple[Any, int]] = [(config.progressive_size, early), (config.img_size, config.epochs - early)]
    sizes = [(size, epochs) for size, epochs in sizes if epochs]
    phases = []
    with progress_bar(console) as bar:
        for size, epochs in sizes:
            one_size = replace(config, img_size=size, progressive_epochs=0)
            measured = ClassificationData(one_size, data.splits).with_batches(Batches(data.batches.batch_size))
            phases.append(_measure(module, measured, epochs, seconds / len(sizes), bar))
    validation = 0 if data.splits.val is None else len(data.splits.val)
    memory = max(p.worker_memory for p in phases)
    return {
        "data": config.data if images is None else None,
        "gmacs": gmacs,
        **_describe(config, data, module),
        "validation_images": validation,
        "worker_memory": memory,
        "phases": [asdict(phase) for phase in phases],
        "limit": "loading" if sum(p.epochs / p.loading - p.epochs / p.computing for p in phases) > 0 else "computing",
        "estimates": [_estimate(config, phases, data.train_size + validation, n) for n in sorted({*DEVICES, devices})],
        "assumption": ASSUMPTION,
        "warnings": [*data.notices(), *excess_workers(config.workers, memory)],
    }


def _gmacs(model: nn.Module, config: TrainConfig) -> float:
    """GMACs of the network for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(torch.zeros(1, config.in_chans, config.img_size, config.img_size))
    return counter.get_total_flops() / 2e9


def _describe(config: TrainConfig, data: ClassificationData, module: Classifier) -> dict[str, Any]:
    """Numbers of training images and steps, the model, the device, and its peak memory in bytes."""
    device = one_device(config)
    return {
        "training_images": data.train_size,
        "classes": len(data.splits.class_names),
        "epochs": config.epochs,
        "steps_per_epoch": data.steps_per_epoch,
        "steps": data.steps,
        "images": min(data.train_size, data.steps_per_epoch * data.batches.global_size) * config.epochs,
        "global_batch_size": data.batches.global_size,
        "batches": str(data.batches),
        "model": config.model,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": config.precision,
        "memory": peak_memory(device),
        "workers": config.workers,
    }
