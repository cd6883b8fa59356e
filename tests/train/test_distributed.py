"""Several processes compute what one computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Trains, and leaves the loss of each batch that this process computed.
DRIVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
from rich.console import Console
from patnet.train import TrainConfig, fit
from patnet.train.classifier import Classifier

losses = []
step = Classifier.training_step

def noted(self, batch, batch_idx):
    loss = step(self, batch, batch_idx)
    losses.append((self.trainer.global_step, loss.item(), len(batch[1])))
    return loss

Classifier.training_step = noted
options = json.loads(sys.argv[1])
fit(TrainConfig(**options), console=Console(quiet=True))
with open(f"{options['out']}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(losses, file)
"""


def train(folder: Path, processes: int, **options) -> list[float]:
    """The loss of each step, the mean over what all processes computed for it."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    launch = launch if processes > 1 else []
    subprocess.run(
        [sys.executable, *launch, str(script), json.dumps(options)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    steps: dict[int, list[tuple[float, int]]] = {}
    for rank in range(processes):
        for step, loss, pictures in json.loads(Path(f"{options['out']}-{rank}.json").read_text()):
            steps.setdefault(step, []).append((loss, pictures))
    return [sum(loss * n for loss, n in parts) / sum(n for _, n in parts) for _, parts in sorted(steps.items())]


@pytest.fixture
def options(photos):
    return {
        "data": str(photos(**{"train/a": 44, "train/b": 44, "val/a": 5, "val/b": 6})),
        "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
        "size": 32,
        "workers": 1,
        "epochs": 2,
        "warmup_epochs": 0.5,
        "lr": 2e-3,
        "mixup": 0.4,
        "cutmix": 1.0,
        "drop_rate": 0.1,
        "drop_path_rate": 0.1,
        "ema_decay": 0.9,
        "accelerator": "cpu",
        "global_batch_size": 8,
        "batch_size": 4,
    }


def test_two_processes_take_the_steps_of_one(tmp_path, options):
    alone = train(tmp_path, 1, **options, out=str(tmp_path / "alone"))
    together = train(tmp_path, 2, **options, out=str(tmp_path / "together"))
    assert len(alone) == len(together) == 22
    assert max(abs(a - b) for a, b in zip(alone[:20], together[:20], strict=True)) < 1e-4
    rows = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("alone", "together")]
    assert len(rows[0]) == len(rows[1]) == 3
    print(
        f"largest difference of 20 losses {max(abs(a - b) for a, b in zip(alone[:20], together[:20], strict=True)):.1e}"
    )
