"""The largest batch that fits, for `--batch_size auto`: tried on a GPU, extrapolated from two small ones on a CPU."""

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch.utils.data import DataLoader

from ..errors import InputError
from .classifier import Classifier, build_model
from .config import TrainConfig
from .distillation import load_teacher
from .run import RunFolder

__all__ = ["available_memory", "candidates", "peak_memory", "say_memory", "settle_batch_size", "too_many_workers"]

# Shares of the free memory that a step may take: on a GPU it is measured, on a CPU extrapolated.
GPU_SHARE, CPU_SHARE = 0.9, 0.8
MOST = 1024  # pictures, where no recipe says how many
SMALL = (4, 16)  # batches that are measured on a CPU
PATIENCE_S = 1800.0  # that other processes wait for the first one's answer


def say_memory(size: float) -> str:
    """Bytes in GiB, or in MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def available_memory() -> int:
    """Main memory that is free for this process, in bytes: the machine's, within the limits of its control groups."""
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


def too_many_workers(workers: int, each: int, free: int) -> list[str]:
    """A warning if so many loading processes of `each` bytes take more memory than is free, else none."""
    if workers * each <= free:
        return []
    return [
        f"--workers {workers}: take {say_memory(each)} each, {say_memory(workers * each)} in all, and "
        f"{say_memory(free)} are free; {free // each} fit"
    ]


def candidates(share: int | None, pictures: int) -> list[int]:
    """Batch sizes to choose from, in ascending order.

    Args:
        share: Pictures of a global batch that each device has; None where the recipe has no global batch.
        pictures: In the data set.
    """
    if share is None:
        return [2**n for n in range(1, MOST.bit_length()) if 2**n <= max(2, pictures)]
    even = [n for n in range(2, share + 1, 2) if share % n == 0]
    return even or [share]  # parts of a step have to be even, see `TrainBatches`


def _take_steps(config: TrainConfig, classes: int, batch: int) -> torch.device:
    """Two whole steps with random pictures of the run's largest size; the device that took them."""
    size = max(config.size, (config.early_size or 0) if config.early_epochs else 0)
    module = Classifier(
        build_model(config, classes),
        config,
        teacher=load_teacher(config.teacher, classes, config.in_chans) if config.teacher else None,
        mean=(0.0,) * config.in_chans,
        std=(1.0,) * config.in_chans,
    )
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        max_steps=2,
        gradient_clip_val=config.clip_grad,
        plugins=[LightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    pictures, labels = torch.randn(batch, config.in_chans, size, size), torch.randint(classes, (batch,))
    trainer.fit(module, DataLoader([(pictures, labels, [])] * 2, batch_size=None))  # type: ignore[arg-type]
    return device


def _largest_on_gpu(config: TrainConfig, classes: int, sizes: list[int]) -> tuple[int, str]:
    """Try one size after the other.

    Lightning's BatchSizeFinder does the same for loaders that it can build anew with another `batch_size` and writes a
    checkpoint to go back to; ours knows the divisors of the global batch alone, and a fresh network is as good.
    """
    fits, limit, said = None, 0.0, ""
    for size in sizes:
        try:
            device = _take_steps(config, classes, size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            said = f"; {size} are too many"
            break
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        limit = GPU_SHARE * (free + torch.cuda.memory_allocated(device))
        if peak > limit:
            said = f"; {size} take {say_memory(peak)}"
            break
        fits = (size, peak)
    if fits is None:
        raise InputError(
            f"--batch_size auto: not even {sizes[0]} pictures of {config.size} px fit on the device; take a smaller "
            "--model or --size, or --grad_checkpointing true"
        )
    return fits[0], f"a step takes {say_memory(fits[1])} of the {say_memory(limit)} that it may{said}"


def _largest_on_cpu(config: TrainConfig, classes: int, sizes: list[int], processes: int) -> tuple[int, str]:
    """Measure two small batches in a fresh process, and extrapolate."""
    task = json.dumps({"config": asdict(config), "classes": classes})
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=task,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"--batch_size auto: a step cannot be measured ({reason}); give a number")
    first, second = json.loads(done.stdout.splitlines()[-1])
    each = max(1.0, (second - first) / (SMALL[1] - SMALL[0]))
    limit = CPU_SHARE * available_memory() / processes
    fitting = [size for size in sizes if first + each * (size - SMALL[0]) <= limit]
    if not fitting:
        raise InputError(
            f"--batch_size auto: not even {sizes[0]} pictures of {config.size} px fit into {say_memory(limit)}; take a "
            "smaller --model or --size, or --grad_checkpointing true"
        )
    needed = first + each * (fitting[-1] - SMALL[0])
    return fitting[-1], (
        f"about {say_memory(needed)} of the {say_memory(limit)} that a process may take, {CPU_SHARE:.0%} of what is "
        f"free; {say_memory(first)} for {SMALL[0]} pictures and {say_memory(each)} for each more were measured"
    )


def settle_batch_size(config: TrainConfig, devices: int, classes: int, pictures: int, console: Console) -> TrainConfig:
    """The configuration with a number in place of `--batch_size auto`, which is searched for and said.

    The first process searches; others take the number from the run folder, where it then stands.

    Args:
        config: Options of the run.
        devices: Of all machines.
        classes: Of the data set.
        pictures: To train on.
        console: Where to say what was chosen and why.

    Raises:
        InputError: If not even the smallest batch fits.
    """
    if config.batch_size != "auto":
        return config
    if getattr(rank_zero_only, "rank", 0):
        folder, start = RunFolder(config.out), time.monotonic()
        while not folder.config.exists():
            if time.monotonic() - start > PATIENCE_S:
                raise InputError(f"--batch_size auto: the first process left no number in {folder.path}; give one")
            time.sleep(0.5)
        return replace(config, batch_size=folder.read_config().batch_size)
    whole = config.global_batch_size
    sizes = candidates(whole // devices if whole else None, pictures)
    console.print("Looking for the largest batch that fits.", highlight=False)
    try:
        kind = L.Trainer(
            accelerator=config.accelerator, devices=1, plugins=[LightningEnvironment()], logger=False
        ).strategy.root_device.type
        if kind == "cuda":
            size, why = _largest_on_gpu(config, classes, sizes)
        else:
            size, why = _largest_on_cpu(config, classes, sizes, max(1, devices // config.num_nodes))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--batch_size auto: a step cannot be measured ({error}); give a number") from error
    of = f", which divides the {whole // devices} of a device in the global batch" if whole else ""
    console.print(f"Batch size {size}{of}: {why}.", highlight=False)
    return replace(config, batch_size=size)


if __name__ == "__main__":
    given: dict[str, Any] = json.loads(sys.stdin.read())
    peaks = []
    for batch in SMALL:
        _take_steps(TrainConfig(**given["config"]), given["classes"], batch)
        peaks.append(peak_memory())
    print(json.dumps(peaks))
