"""Tiny runs: their options, their results, and processes that train them."""

import csv
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from patnet.train import RunResult, TrainConfig, train

QUIET = Console(quiet=True)
OPTIONS = {
    "model_kwargs": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 16},
    "img_size": 32,
    "batch_size": 4,
    "workers": 0,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "lr": 2e-3,
    "accelerator": "cpu",
}
# All that draws random numbers, and the EMA model.
RANDOM = {
    "mixup": 0.4,
    "cutmix": 1.0,
    "drop": 0.2,
    "drop_path": 0.2,
    "model_ema_decay": 0.9,
    "aa": "rand-m5-mstd0.5-inc1",
    "reprob": 0.2,
}


def config(data: Path | str, out: Path, **options: Any) -> TrainConfig:
    return TrainConfig(data=str(data), out=str(out), **{**OPTIONS, **options})


def run(data: Path | str, out: Path, *, resume: bool = False, console: Console = QUIET, **options: Any) -> RunResult:
    return train(config(data, out, **options), resume=resume, console=console)


FORK = multiprocessing.get_context("fork")


def write_noise(root: Path, **counts: int) -> Path:
    """Write `counts` images of noise into each named folder of `root`."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(root / name / f"{i:02d}.png")
    return root


def weights(directory: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / checkpoint / "model.safetensors")


def equal_weights(a: Path, b: Path, checkpoint: str = "last") -> bool:
    ours, theirs = weights(a, checkpoint), weights(b, checkpoint)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def results(directory: Path) -> list[dict[str, str]]:
    """The metrics without what depends on the machine."""
    return [{name: row[name] for name in row if name.startswith(("train_", "val_", "lr"))} for row in rows(directory)]


def forked() -> Any:
    """Processes that need not import torch; not forks of this one, where autograd has threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patnet.train", "train.running"])
    return context


def in_ranks(
    function: Callable[..., Any], *args: Any, slurm: bool = False, processes: int = 2, context: Any = None
) -> list[Any]:
    """What `function` returns in each of several processes with the environment of torchrun or of SLURM.

    Without training a `context` that forks is quicker, and takes any function.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = context or forked()
    queue = context.Queue()
    given = (processes, port, slurm, function, args)
    ranks = [context.Process(target=_ranked, args=(queue, rank, *given)) for rank in range(processes)]
    for process in ranks:
        process.start()
    try:
        found = dict(queue.get(timeout=120) for _ in ranks)
    finally:
        for process in ranks:
            process.join(30)
            process.kill()
    return [found[rank] for rank in range(processes)]


def _ranked(queue: Any, rank: int, count: int, port: int, slurm: bool, function: Callable[..., Any], args: Any) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as in a command
    common: dict[str, Any] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if slurm:
        common |= {"SLURM_JOB_ID": 1, "SLURM_JOB_NAME": "t0", "SLURM_NTASKS": count, "SLURM_NTASKS_PER_NODE": count}
        common |= {"SLURM_NNODES": 1, "SLURM_NODEID": 0, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        common |= dict.fromkeys(("SLURM_JOB_NODELIST", "SLURM_NODELIST"), "127.0.0.1")
    elif count > 1:
        common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        common |= {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in common.items()})
    rank_zero_only.rank = rank  # which Lightning reads as it is imported
    queue.put((rank, function(*args)))
