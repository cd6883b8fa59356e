"""`--batch-size auto`: the largest batch size whose steps fit into memory."""

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psutil
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from torch.utils.data import DataLoader

from ..data.batches import Batches
from ..errors import InputError
from .callbacks import format_bytes
from .config import RunConfig
from .data import available_memory
from .run import RunDirectory, interruptible, is_main_process, make_trainer

Config = TypeVar("Config", bound=RunConfig)

# Shares of the free memory that a step may take: on a GPU it is measured, on a CPU extrapolated.
GPU_SHARE, CPU_SHARE = 0.9, 0.8
LARGEST = 1024  # images, without a global batch size
PATIENCE_S = 1800.0  # for which other processes wait for the first one's choice


def train_on(module: Any, batches: Any, config: RunConfig, **kwargs: Any) -> None:
    """Train on one device without a run directory, to measure steps; `kwargs` are arguments of the trainer."""
    kwargs |= {"precision": config.precision, "gradient_clip_val": config.clip_grad, "limit_val_batches": 0}
    trainer = make_trainer(config.accelerator, "1", plugins=[LightningEnvironment()], **kwargs)
    with interruptible(trainer):
        trainer.fit(module, batches)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: allocated on a GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one_device(config: RunConfig) -> torch.device:
    """The device on which steps are measured."""
    trainer = make_trainer(config.accelerator, "1", plugins=[LightningEnvironment()])
    return trainer.strategy.root_device


def candidates(share: int | None, images: int) -> list[int]:
    """Batch sizes to choose from, in ascending order.

    Args:
        share: Images of the global batch per device; None without a global batch size.
        images: Images in the data set per device.
    """
    if share is None:
        return [2**n for n in range(1, LARGEST.bit_length()) if 2**n <= max(2, images)]
    even = [n for n in range(2, share + 1, 2) if share % n == 0]
    return even or [share]  # several batches of a step must be even, see `TrainBatches`


def choose_batch_size(config: Config, data: Any, make_module: Any, devices: int, console: Console) -> Config:
    """The configuration with the largest batch size that fits.

    The first process measures steps of the run's own module; the others read its choice from the run directory.
    Lightning's BatchSizeFinder tries powers of two only, which need not divide the global batch size, and on a CPU it
    would not notice that the memory is full.

    Args:
        config: Options of the run.
        data: Data of the run.
        make_module: Makes the module.
        devices: Devices of all machines.
        console: Where to print the choice.

    Raises:
        InputError: If not even the smallest batch fits.
    """
    if not is_main_process():
        run, start = RunDirectory(config.out), time.monotonic()
        while not run.config.exists():
            if time.monotonic() - start > PATIENCE_S:
                raise InputError(f"--batch-size auto: the first process chose none in {run.path}; give a number")
            time.sleep(0.5)
        return replace(config, batch_size=run.read_config(type(config)).batch_size)
    console.print("Looking for the largest batch size that fits.", highlight=False)
    data = data.with_batches(Batches(2))
    examples = [data.example_batch(epoch) for epoch in (0, config.epochs - 1)]  # of two sizes if resized progressively
    module, device = make_module(data, None), one_device(config)
    on_gpu = device.type == "cuda"
    if on_gpu:
        limit = GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        processes = max(1, devices // config.num_nodes)
        limit = CPU_SHARE * available_memory() / processes + psutil.Process().memory_info().rss

    def measure(size: int) -> int:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        batches: Any = [[_enlarged(part, size) for part in example] for example in examples]
        train_on(copy.deepcopy(module), DataLoader(batches, batch_size=None), config, max_steps=len(examples))
        return peak_memory(device)

    share = config.global_batch_size // devices if config.global_batch_size else None
    size, peak = largest_fitting(candidates(share, data.train_size // devices), measure, limit, extrapolate=not on_gpu)
    of = f"a step takes {format_bytes(peak)} of at most {format_bytes(limit)}"
    console.print(f"Batch size {size}: {of}.", highlight=False)
    return replace(config, batch_size=size)


def largest_fitting(
    sizes: Sequence[int], measure: Callable[[int], float], limit: float, *, extrapolate: bool
) -> tuple[int, float]:
    """The largest batch size whose peak memory is within a limit, and that peak in bytes.

    Args:
        sizes: Batch sizes in ascending order.
        measure: Gives the peak memory of a size in bytes.
        limit: Upper limit in bytes.
        extrapolate: Measure only until the peak has grown twice, and extrapolate linearly.

    Raises:
        InputError: If not even the smallest fits.
    """
    fitting: tuple[int, float] | None = None
    grown: list[tuple[int, float]] = []  # sizes at which the peak grew, and the peaks
    for size in sizes:
        if extrapolate and len(grown) > 2:
            (first, low), (second, high) = grown[-2:]
            peak = high + (high - low) / (second - first) * (size - second)
        else:
            try:
                peak = measure(size)
            except torch.OutOfMemoryError:
                peak = math.inf
        if peak > limit:
            break
        fitting = size, peak
        if not grown or peak > grown[-1][1]:
            grown.append((size, peak))
    if fitting is None:
        raise InputError(
            f"--batch-size auto: not even {sizes[0]} images fit into {format_bytes(limit)}; choose a smaller model or "
            "image size, or --grad-checkpointing"
        )
    return fitting


def _enlarged(part: Any, size: int) -> Any:
    """Tensor or list of `size` images that repeats those of a smaller one."""
    if isinstance(part, torch.Tensor):
        return part[torch.arange(size) % len(part)]
    return [part[index % len(part)] for index in range(size)] if part else part
