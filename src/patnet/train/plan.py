"""What a run will need and take, extrapolated from steps that are measured on one device."""

import copy
import io
import itertools
import multiprocessing
import time
from collections.abc import Iterable
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
from ..errors import InputError
from .batch_size import Batches, choose_batch_size, excess_workers, peak_memory
from .callbacks import progress_bar
from .classifier import Classifier
from .config import TrainConfig
from .data import ClassificationData
from .run import interruptible, make_trainer

__all__ = ["ASSUMPTION", "SyntheticImages", "plan"]

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
        self.files = []
        for _ in range(16):
            coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize((500, 375))
            content = io.BytesIO()
            coarse.convert(mode).save(content, "JPEG", quality=95)
            self.files.append(content.getvalue())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.files[index % len(self.files)])), self.samples[index][1]


@dataclass(frozen=True)
class Phase:
    """Epochs at one image size, with rates in images/s: loading alone, computing alone, and both together."""

    img_size: int
    epochs: int
    loading: float
    computing: float
    together: float


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


class _Cycle:
    """Batches over and over."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return itertools.cycle(self.batches)


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


def _training_rate(module: L.LightningModule, batches: Iterable[Any], config: TrainConfig, seconds: float) -> float:
    """Images/s of complete steps on one device."""
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
        limit_val_batches=0,
    )
    try:
        with interruptible(trainer):
            trainer.fit(module, batches)
    except torch.OutOfMemoryError as error:
        size = config.batch_size
        raise InputError(
            f"--batch-size {size}: does not fit on the device; --batch-size auto finds what does"
        ) from error
    return clock.rate


def _measure(module: Classifier, data: ClassificationData, epochs: int, seconds: float, bar: Any) -> tuple[Phase, int]:
    """Measure the epochs at one image size; also the memory of a loader process in bytes."""
    task = bar.add_task(f"{data.config.img_size} px", total=3)
    loading, kept, memory = _loading_rate(data.train_loader(world=1, rank=0), seconds / 4)
    bar.advance(task)
    computing = _training_rate(module, _Cycle(kept), data.config, seconds / 4)
    bar.advance(task)
    together = _training_rate(module, data.train_loader(world=1, rank=0), data.config, seconds / 2)
    bar.advance(task)
    return Phase(data.config.img_size, epochs, loading, computing, together), memory


def _gmacs(model: nn.Module, config: TrainConfig) -> float:
    """GMACs of the network for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(torch.zeros(1, config.in_chans, config.img_size, config.img_size))
    return counter.get_total_flops() / 2e9


def _estimate(config: TrainConfig, phases: list[Phase], data: ClassificationData, devices: int) -> dict[str, Any]:
    """The time in s on a number of devices, and the images/s to load for them."""
    try:
        batches = str(Batches.of(config, devices))
    except InputError as error:
        batches = str(error)
    images = data.train_size + _validation_size(data)
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
    splits = None
    if images is not None:
        classes = config.num_classes or 1000
        synthetic = SyntheticImages(images, classes, "L" if config.in_chans == 1 else "RGB")
        splits = DataSplits([str(i) for i in range(classes)], synthetic, None)
    data, make_module = ClassificationData(config, splits), partial(Classifier, config)
    local = config.devices if config.devices.isdigit() else make_trainer(config.accelerator, config.devices).num_devices
    devices = int(local) * config.num_nodes
    if config.batch_size == "auto":
        config = choose_batch_size(config, data, make_module, devices, console)
    data = data.with_batches(Batches.of(config, devices))
    module = make_module(data, None)
    gmacs = _gmacs(module.model, config)  # before the module is on the device
    early = min(config.epochs, config.progressive_epochs)
    sizes = [(config.progressive_size or 0, early), (config.img_size, config.epochs - early)]
    sizes = [(size, epochs) for size, epochs in sizes if epochs]
    phases, worker_memory = [], 0
    with progress_bar(console) as bar:
        for size, epochs in sizes:
            one_size = replace(config, img_size=size, progressive_epochs=0)
            one_device = ClassificationData(one_size, data.splits).with_batches(Batches(data.batches.batch_size))
            phase, memory = _measure(module, one_device, epochs, seconds / len(sizes), bar)
            phases.append(phase)
            worker_memory = max(worker_memory, memory)
    return {
        "data": config.data if images is None else None,
        "gmacs": gmacs,
        **_describe(config, data, module),
        "worker_memory": worker_memory,
        "phases": [asdict(phase) for phase in phases],
        "limit": "loading" if sum(p.epochs / p.loading - p.epochs / p.computing for p in phases) > 0 else "computing",
        "estimates": [_estimate(config, phases, data, n) for n in sorted({*DEVICES, devices})],
        "assumption": ASSUMPTION,
        "warnings": [*data.notices(), *excess_workers(config.workers, worker_memory)],
    }


def _validation_size(data: ClassificationData) -> int:
    return 0 if data.splits.val is None else len(data.splits.val)


def _describe(config: TrainConfig, data: ClassificationData, module: Classifier) -> dict[str, Any]:
    """Numbers of images and steps, the model, the device, and its peak memory in bytes."""
    device = make_trainer(config.accelerator, "1", logger=False).strategy.root_device
    on_gpu = device.type == "cuda"
    return {
        "training_images": data.train_size,
        "validation_images": _validation_size(data),
        "classes": len(data.splits.class_names),
        "epochs": config.epochs,
        "steps_per_epoch": data.steps_per_epoch,
        "steps": data.steps,
        "images": min(data.train_size, data.steps_per_epoch * data.batches.global_size) * config.epochs,
        "global_batch_size": data.batches.global_size,
        "batches": str(data.batches),
        "model": config.model,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "precision": config.precision,
        "memory": torch.cuda.max_memory_allocated(device) if on_gpu else peak_memory(),
        "workers": config.workers,
    }
