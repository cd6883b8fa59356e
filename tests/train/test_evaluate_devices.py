"""Evaluation in several processes gives what it gives in one, to the bit."""

import json
import subprocess
import sys

import pytest
from rich.console import Console

from patnet import InputError
from patnet.train import TrainConfig, evaluate, fit

QUIET = Console(quiet=True)
OPTIONS = {"batch_size": 4, "workers": 0, "accelerator": "cpu", "console": QUIET}


@pytest.fixture
def run(photos, tmp_path):
    data = photos(**{"train/a": 4, "train/b": 4, "test/a": 8, "test/b": 9})
    fit(
        TrainConfig(
            data=str(data),
            out=str(tmp_path / "run"),
            model_args={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
            size=32,
            batch_size=4,
            workers=0,
            epochs=1,
            warmup_epochs=0,
            val_fraction=0,
            accelerator="cpu",
        ),
        console=QUIET,
    )
    return tmp_path / "run"


def test_two_processes_give_the_figures_of_one(run, tmp_path):
    """17 pictures in batches of 4: five batches for two processes, the last of one picture."""
    result, folder = evaluate(run, **OPTIONS)
    assert result["pictures"] == 17
    command = [sys.executable, "-m", "patnet", "evaluate", str(run), "--accelerator", "cpu", "--devices", "2"]
    command += ["--batch_size", "4", "--workers", "0", "--out", str(tmp_path / "two"), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == result  # so printed once
    assert (tmp_path / "two" / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
    assert (tmp_path / "two" / "mistakes.png").read_bytes() == (folder / "mistakes.png").read_bytes()


def test_devices_that_are_not_there_are_named(run):
    with pytest.raises(InputError, match="--accelerator gpu --devices 99"):
        evaluate(run, **{**OPTIONS, "accelerator": "gpu"}, devices="99")
