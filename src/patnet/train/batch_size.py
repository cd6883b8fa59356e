"""The batches of a run: the global batch size on the devices there are, and `--batch-size auto`."""

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from torch.utils.data import DataLoader

from ..errors import InputError
from .callbacks import format_bytes
from .config import RunConfig
from .run import RunDirectory, interruptible, is_main_process, make_trainer

__all__ = ["Batches", "available_memory", "candidates", "choose_batch_size", "excess_workers", "peak_memory"]

Config = TypeVar("Config", bound=RunConfig)

# Shares of the free memory that a step may take: on a GPU it is measured, on a CPU extrapolated.
GPU_SHARE, CPU_SHARE = 0.9, 0.8
LARGEST = 1024  # images, without a global batch size
PATIENCE_S = 1800.0  # for which other processes wait for the first one's choice


@dataclass(frozen=True)
class Batches:
    """How the images of an optimiser step are distributed.

    Attributes:
        batch_size: Images that a device computes at once.
        accumulate: Batches of a device per step.
        devices: Devices of all machines.
    """

    batch_size: int
    accumulate: int = 1
    devices: int = 1

    @property
    def global_size(self) -> int:
        """Images per step."""
        return self.batch_size * self.accumulate * self.devices

    @classmethod
    def of(cls, config: RunConfig, devices: int) -> Self:
        """The batches of a run, from its `batch_size` (an upper limit) and `global_batch_size`.

        Args:
            config: Options of the run.
            devices: Devices of all machines.

        Raises:
            InputError: If the devices, or the batch size on them, do not divide the global batch size.
        """
        assert config.batch_size != "auto"
        size, total = config.batch_size, config.global_batch_size
        if total is None:
            return cls(size, 1, devices)
        if total % devices:
            near = [str(n) for n in (total // devices * devices, -(-total // devices) * devices) if n]
            raise InputError(
                f"--global-batch-size {total}: is not divisible by {devices} devices; "
                f"give {' or '.join(near)}, or another number of devices"
            )
        share = total // devices
        size = min(size, share)
        if share % size:
            fitting = max(n for n in range(1, size + 1) if share % n == 0 and (n % 2 == 0 or n in (1, share)))
            raise InputError(
                f"--batch-size {config.batch_size}: does not divide the {share} images per device of "
                f"--global-batch-size {total}; {fitting} does"
            )
        return cls(size, share // size, devices)

    def __str__(self) -> str:
        times = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        devices = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return f"global batch size {self.global_size}: {self.batch_size} images{times} on {devices}"


def available_memory() -> int:
    """Main memory that is free for this process in bytes: the machine's, within the limits of its control groups."""
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        for folder in (group, *group.parents[: -len(Path("/sys/fs").parts)]):
            if (folder / "memory.max").exists() and (limit := (folder / "memory.max").read_text().strip()) != "max":
                cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
                free = min(free, int(limit) - used)
    except (OSError, IndexError, ValueError):
        pass  # no control groups here, or none that may be read
    return max(0, free)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def excess_workers(workers: int, each: int) -> list[str]:
    """A warning if loader processes of `each` bytes take more memory than is free, else none."""
    free = available_memory()
    if workers * each <= free:
        return []
    return [
        f"Warning: --workers {workers}: {format_bytes(each)} each take {format_bytes(workers * each)} of "
        f"{format_bytes(free)} of free memory; {free // each} fit"
    ]


def candidates(share: int | None, images: int) -> list[int]:
    """Batch sizes to choose from, in ascending order.

    Args:
        share: Images of the global batch per device; None without a global batch size.
        images: Images in the data set.
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
    module = make_module(data, None)
    share = config.global_batch_size // devices if config.global_batch_size else None
    trainer = make_trainer(config.accelerator, "1", plugins=[LightningEnvironment()], logger=False)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu:
        limit = GPU_SHARE * torch.cuda.mem_get_info()[0]
    else:
        processes = max(1, devices // config.num_nodes)
        limit = CPU_SHARE * available_memory() / processes + psutil.Process().memory_info().rss
    size, peak = largest_fitting(
        candidates(share, data.train_size),
        lambda size: _measure_step(config, module, examples, size),
        limit,
        extrapolate=not on_gpu,
    )
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


def _measure_step(config: RunConfig, module: Any, examples: Sequence[Any], size: int) -> int:
    """Peak memory in bytes of an optimiser step with `size` images like each of the examples."""
    trainer = make_trainer(
        config.accelerator,
        "1",
        precision=config.precision,
        max_steps=len(examples),
        gradient_clip_val=config.clip_grad,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    on_gpu = trainer.strategy.root_device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batches: Any = [[_enlarged(part, size) for part in example] for example in examples]
    with interruptible(trainer):
        trainer.fit(copy.deepcopy(module), DataLoader(batches, batch_size=None))
    return torch.cuda.max_memory_allocated() if on_gpu else peak_memory()


def _enlarged(part: Any, size: int) -> Any:
    """Tensor or list of `size` images that repeats those of a smaller one."""
    if isinstance(part, torch.Tensor):
        return part[torch.arange(size) % len(part)]
    return [part[index % len(part)] for index in range(size)] if part else part
