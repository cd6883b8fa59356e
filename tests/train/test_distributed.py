"""Several processes compute what one computes."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from patnet import InputError
from patnet.train import TrainConfig, evaluate, fit

# Trains, and leaves the loss of each batch that this process computed; with `stop_at`, asks to stop in that step.
DRIVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from rich.console import Console
from patnet.train import TrainConfig, fit
from patnet.train.classifier import Classifier
from patnet.train.fit import Interrupted

losses = []
step = Classifier.training_step
options = json.loads(sys.argv[1])
stop_at, resume = options.pop("stop_at", None), options.pop("resume", False)

def noted(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    losses.append((self.trainer.global_step, loss.item(), len(batch[1])))
    if self.trainer.global_step == stop_at and self.trainer.global_rank == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
    return loss

Classifier.training_step = noted
try:
    fit(TrainConfig(**options), resume=resume, console=Console(quiet=True))
    assert stop_at is None
except Interrupted:
    assert stop_at is not None
rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
with open(f"{options['out']}-{rank}.json", "w") as file:
    json.dump(losses, file)
"""


def start_with_torchrun(command: list[str], processes: int) -> None:
    """Run a script in several processes, or in one without torchrun."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *command],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )


def start_as_slurm_does(command: list[str], processes: int) -> None:
    """Run a script in several processes with the variables that `srun` gives to its tasks."""
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "t2",
        "SLURM_NTASKS": str(processes),
        "SLURM_NTASKS_PER_NODE": str(processes),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NODELIST": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    try:
        assert [task.wait(timeout=300) for task in tasks] == [0] * processes
    finally:
        for task in tasks:
            task.kill()


def train(
    folder: Path, processes: int, start: Callable[[list[str], int], None] = start_with_torchrun, **options
) -> list[float]:
    """The loss of each step, the mean over what all processes computed for it."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    start([str(script), json.dumps(options)], processes)
    steps: dict[int, list[tuple[float, int]]] = {}
    for rank in range(processes):
        for step, loss, pictures in json.loads(Path(f"{options['out']}-{rank}.json").read_text()):
            steps.setdefault(step, []).append((loss, pictures))
    return [sum(loss * n for loss, n in parts) / sum(n for _, n in parts) for _, parts in sorted(steps.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def options(folder):
    """Of all runs here; at a low rate, for a high one makes much of how sums over processes are rounded."""
    rng = np.random.default_rng(0)
    for place, count in {"train/a": 44, "train/b": 44, "val/a": 5, "val/b": 6}.items():
        (folder / "photos" / place).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / place / f"{number:02}.png")
    return {
        "data": str(folder / "photos"),
        "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
        "size": 32,
        "workers": 1,
        "epochs": 2,
        "warmup_epochs": 0.5,
        "lr": 1e-4,
        "clip_grad": 1.0,
        "mixup": 0.4,
        "cutmix": 1.0,
        "drop_rate": 0.1,
        "drop_path_rate": 0.1,
        "ema_decay": 0.9,
        "accelerator": "cpu",
        "global_batch_size": 8,
        "batch_size": 4,
    }


@pytest.fixture(scope="module")
def alone(folder, options):
    return train(folder, 1, **options, out=str(folder / "alone"))


@pytest.fixture(scope="module")
def together(folder, options):
    return train(folder, 2, **options, out=str(folder / "together"))


def epochs_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def apart(a: list[float], b: list[float]) -> float:
    """The largest difference of the first 20 losses."""
    return max(abs(x - y) for x, y in zip(a[:20], b[:20], strict=True))


def test_two_processes_take_the_steps_of_one(folder, alone, together):
    assert len(alone) == len(together) == 22
    print(f"largest difference of 20 losses {apart(alone, together):.1e}")
    assert apart(alone, together) < 1e-4
    assert len(epochs_of(folder / "alone")) == len(epochs_of(folder / "together")) == 2


def test_divided_weights_are_kept_whole_and_resumed_to_the_bit(folder, options, together):
    divided = {**options, "strategy": "fsdp"}
    sharded = train(folder, 2, **divided, out=str(folder / "whole"))
    print(f"largest difference of 20 losses, FSDP and DDP {apart(together, sharded):.1e}")
    assert apart(together, sharded) < 1e-4
    stopped = {**divided, "out": str(folder / "stopped")}
    assert len(train(folder, 2, **stopped, stop_at=3)) == 10  # several processes ask each tenth step
    train(folder, 2, **stopped, resume=True)
    for kept in ("best", "last"):
        whole, resumed = (load_file(folder / run / kept / "model.safetensors") for run in ("whole", "stopped"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # An epoch that was stopped is summed up whole.
    for whole, resumed in zip(*(epochs_of(folder / run) for run in ("whole", "stopped")), strict=True):
        assert float(resumed["train_loss"]) == pytest.approx(float(whole["train_loss"]), rel=1e-6)
        assert float(resumed["train_top1"]) == pytest.approx(float(whole["train_top1"]), rel=1e-6)
    # What was kept is the network that was validated.
    measured = evaluate(folder / "stopped", which="last", split="val", accelerator="cpu")
    assert measured is not None
    assert measured[0]["top1"] == pytest.approx(float(epochs_of(folder / "stopped")[-1]["val_top1"]), abs=1e-6)


def test_a_run_goes_on_with_another_number_of_processes(folder, options, alone):
    stopped = {**options, "out": str(folder / "fewer")}
    first = train(folder, 2, **stopped, stop_at=3)
    # Not where its steps would be others.
    file = folder / "fewer" / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["batching"]["devices"] = 4
    torch.save(checkpoint, file)
    with pytest.raises(InputError, match=r"its steps are of 16 pictures \(global batch 16.*here they would be of 8"):
        fit(TrainConfig(**stopped), resume=True, console=Console(quiet=True))
    file.write_bytes(whole)
    rest = train(folder, 1, **stopped, resume=True)
    assert (len(first), len(rest)) == (10, 12)
    assert apart(alone, first + rest) < 1e-4
    assert [row["epoch"] for row in epochs_of(folder / "fewer") if row["val_top1"]] == ["1", "2"]
    for one, fewer in zip(epochs_of(folder / "alone"), epochs_of(folder / "fewer"), strict=True):
        assert float(fewer["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=1e-4)


def test_tasks_of_slurm_take_the_steps_of_torchruns(folder, options, together):
    tasks = train(folder, 2, start_as_slurm_does, **options, devices="2", num_nodes=1, out=str(folder / "slurm"))
    assert tasks == together
