"""The batches of a run: the global batch size on the devices there are, and `--batch-size auto`."""

import copy
import multiprocessing
import pickle
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import lightning as L
import psutil
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console

from ..errors import InputError
from .config import RunConfig
from .distributed import is_main_process, make_trainer
from .progress import format_bytes
from .run import RunDirectory

__all__ = ["Batches", "available_memory", "candidates", "choose_batch_size", "excess_workers", "peak_memory"]

Config = TypeVar("Config", bound=RunConfig)

# Shares of the free memory that a step may take: on a GPU it is measured, on a CPU extrapolated.
GPU_SHARE, CPU_SHARE = 0.9, 0.8
LARGEST = 1024  # images, without a global batch size
SMALL = (4, 16)  # batch sizes that are measured on a CPU
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
    """The configuration with the largest batch size that fits in place of `auto`.

    The first process measures training steps of the run's own module; the others read its choice from the run
    directory.

    Args:
        config: Options of the run.
        data: Data of the run.
        make_module: Makes the module.
        devices: Devices of all machines.
        console: Where to print the choice.

    Raises:
        InputError: If not even the smallest batch fits.
    """
    if config.batch_size != "auto":
        return config
    if not is_main_process():
        run, start = RunDirectory(config.out), time.monotonic()
        while not run.config.exists():
            if time.monotonic() - start > PATIENCE_S:
                raise InputError(f"--batch-size auto: the first process chose none in {run.path}; give a number")
            time.sleep(0.5)
        return replace(config, batch_size=run.read_config(type(config)).batch_size)
    console.print("Looking for the largest batch size that fits.", highlight=False)
    share = config.global_batch_size // devices if config.global_batch_size else None
    sizes = candidates(share, data.train_size)
    data = data.with_batches(Batches(2))
    examples = [
        data.example_batch(epoch) for epoch in (0, config.epochs - 1)
    ]  # with progressive resizing, of two sizes
    module = make_module(data, None)
    trainer = make_trainer(config.accelerator, "1", plugins=[LightningEnvironment()], logger=False)
    if trainer.strategy.root_device.type == "cuda":
        size, reason = _largest_on_gpu(config, module, examples, sizes)
    else:
        size, reason = _largest_on_cpu(config, module, examples, sizes, max(1, devices // config.num_nodes))
    console.print(f"Batch size {size}: {reason}.", highlight=False)
    return replace(config, batch_size=size)


def _enlarged(part: Any, size: int) -> Any:
    """A batch of `size` images that repeats those of a smaller one."""
    times = -(-size // len(part)) if len(part) else 1
    return (
        part.repeat(times, *[1] * (part.dim() - 1))[:size] if isinstance(part, torch.Tensor) else (part * times)[:size]
    )


def _train_steps(config: RunConfig, module: Any, examples: Sequence[Any], size: int) -> torch.device:
    """Take an optimiser step with a batch of `size` images like each of the examples; gives the device."""
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
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    trainer.fit(copy.deepcopy(module), [[_enlarged(part, size) for part in example] for example in examples])
    return device


def _largest_on_gpu(config: RunConfig, module: Any, examples: Sequence[Any], sizes: list[int]) -> tuple[int, str]:
    """Try one size after the other.

    Lightning's BatchSizeFinder rebuilds loaders with powers of two; ours must divide the global batch size.
    """
    fitting, limit, next_one = None, 0.0, ""
    for size in sizes:
        try:
            device = _train_steps(config, module, examples, size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            next_one = f"; {size} do not fit"
            break
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        limit = GPU_SHARE * (free + torch.cuda.memory_allocated(device))
        if peak > limit:
            next_one = f"; {size} take {format_bytes(peak)}"
            break
        fitting = size, peak
    if fitting is None:
        raise _too_small(sizes[0], "the device's memory")
    return fitting[0], f"a step takes {format_bytes(fitting[1])} of {format_bytes(limit)}{next_one}"


def _too_small(size: int, memory: str) -> InputError:
    return InputError(
        f"--batch-size auto: not even {size} images fit into {memory}; choose a smaller model or image size, "
        "or --grad-checkpointing"
    )


def _largest_on_cpu(
    config: RunConfig, module: Any, examples: Sequence[Any], sizes: list[int], processes: int
) -> tuple[int, str]:
    """Measure two small batches in a new process, and extrapolate."""
    first, second = measure_peaks(config, module, examples)
    each = max(1.0, (second - first) / (SMALL[1] - SMALL[0]))
    limit = CPU_SHARE * available_memory() / processes
    fitting = [size for size in sizes if first + each * (size - SMALL[0]) <= limit]
    if not fitting:
        raise _too_small(sizes[0], format_bytes(limit))
    needed = first + each * (fitting[-1] - SMALL[0])
    return fitting[-1], (
        f"about {format_bytes(needed)} of {format_bytes(limit)} ({CPU_SHARE:.0%} of the free memory); measured "
        f"{format_bytes(first)} for {SMALL[0]} images and {format_bytes(each)} for each more"
    )


def measure_peaks(config: RunConfig, module: Any, examples: Sequence[Any]) -> list[int]:
    """Peak memory in bytes of a new process that trains with each of the `SMALL` batch sizes.

    Raises:
        InputError: If the steps fail, or the module cannot be sent to the process.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_send_peaks, args=(sender, config, module, examples))
    try:
        process.start()
        sender.close()
        answer = receiver.recv()
    except (AttributeError, TypeError, pickle.PicklingError, EOFError) as error:
        raise InputError(f"--batch-size auto: a step cannot be measured ({error}); give a number") from error
    finally:
        if process.pid is not None:
            process.join()
    if isinstance(answer, str):
        raise InputError(f"--batch-size auto: a step cannot be measured ({answer}); give a number")
    return answer


def _send_peaks(sender: Any, config: RunConfig, module: L.LightningModule, examples: Sequence[Any]) -> None:
    peaks = []
    try:
        for size in SMALL:
            _train_steps(config, module, examples, size)
            peaks.append(peak_memory())
        sender.send(peaks)
    except Exception as error:  # whatever the step raises is the answer
        sender.send(str(error) or type(error).__name__)
