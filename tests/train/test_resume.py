"""Runs that are killed, asked to stop, or interrupted go on as if nothing had been."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from patnet import InputError
from patnet.train import Interrupted, TrainConfig, fit
from patnet.train.checkpoints import SafeCheckpointIO, newest_checkpoint
from patnet.train.classifier import Classifier

QUIET = Console(quiet=True)
# Everything that draws: augmentation, Mixup and CutMix, dropout, stochastic depth, the moving average.
DRAWS = {
    "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
    "size": 32,
    "batch_size": 4,
    "workers": 0,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "lr": 2e-3,
    "mixup": 0.4,
    "cutmix": 1.0,
    "drop_rate": 0.2,
    "drop_path_rate": 0.2,
    "ema_decay": 0.9,
    "auto_augment": "rand-m5-mstd0.5-inc1",
    "random_erase": 0.2,
    "accelerator": "cpu",
    "checkpoint_minutes": 1e-9,
}


def config(data: Path, out: Path, **options) -> TrainConfig:
    return TrainConfig(data=str(data), out=str(out), **{**DRAWS, **options})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "last" / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    mine, yours = weights(a), weights(b)
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.fixture
def processes(monkeypatch):
    """Starts processes that need not import everything anew, on one thread as the tests are.

    Not forks of this process: autograd has threads here, from whatever ran before.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patnet.train.fit"])
    return context.Process


def killed_until_done(processes, data: Path, out: Path, rng: random.Random, longest: float) -> int:
    """Run in processes that are killed at random moments until one gets through; how many were killed."""
    kills = 0
    while True:
        resume = (out / "config.yaml").is_file()
        child = processes(target=fit, args=(config(data, out),), kwargs={"resume": resume})
        child.start()
        child.join(rng.uniform(0, longest))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
            longest *= 1.2  # so that it ends
        elif child.exitcode == 0:
            return kills
        else:
            raise AssertionError(f"the run ended with {child.exitcode}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for folder, count in {"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 3}.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(config(pictures, out), console=QUIET)
    return out


@pytest.mark.parametrize("wanted", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_weights_to_the_bit(pictures, whole, tmp_path, processes, wanted):
    processes(target=os.getpid).start()  # so that the first one is not killed while it imports
    start = time.monotonic()
    fit(config(pictures, tmp_path / "again"), console=QUIET)
    took = time.monotonic() - start
    assert equal(whole, tmp_path / "again")
    kills, runs, rng = 0, 0, random.Random(0)
    while kills < wanted:
        runs += 1
        kills += killed_until_done(processes, pictures, tmp_path / f"killed{runs}", rng, took)
        assert equal(whole, tmp_path / f"killed{runs}")
    print(f"{kills} kills, all resumed; {runs} runs, none with another final weight")


def as_the_first_version_saved(file: Path) -> None:
    """Keep the sums over the epoch among the weights."""
    checkpoint = torch.load(file, weights_only=True)
    for name, parts in checkpoint.pop("sums").items():
        checkpoint["state_dict"].update({f"train_metrics.{name}.{part}": value for part, value in parts.items()})
    torch.save(checkpoint, file)


@pytest.mark.parametrize(
    ("batch", "workers", "earlier"), [(0, 0, False), (2, 2, False), (5, 0, False), (8, 2, False), (3, 0, True)]
)
def test_interrupted_anywhere_the_metrics_are_the_same_too(
    pictures, whole, tmp_path, monkeypatch, batch, workers, earlier
):
    step, count = Classifier.training_step, [0]

    def interrupted(self, given, batch_idx):
        count[0] += 1
        if count[0] == batch + 1:
            raise KeyboardInterrupt
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(config(pictures, tmp_path / "cut", workers=workers), console=QUIET)
    monkeypatch.setattr(Classifier, "training_step", step)
    if earlier:
        as_the_first_version_saved(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    fit(config(pictures, tmp_path / "cut", workers=workers), resume=True, console=QUIET)
    assert equal(whole, tmp_path / "cut")
    lines = [(run / "metrics.csv").read_text().splitlines() for run in (whole, tmp_path / "cut")]
    measured = lines[0][0].split(",").index("lr") + 1
    assert [row.split(",")[:measured] for row in lines[0]] == [row.split(",")[:measured] for row in lines[1]]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_checkpoints_within_the_epoch(pictures, whole, tmp_path, monkeypatch, kind):
    step = Classifier.training_step
    before = signal.getsignal(kind)

    def signalled(self, given, batch_idx):
        if self.trainer.global_step == 6:
            os.kill(os.getpid(), kind)
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", signalled)
    with pytest.raises(Interrupted) as stopped:
        fit(config(pictures, tmp_path / "cut", checkpoint_minutes=60), console=QUIET)
    assert stopped.value.wish == kind
    assert signal.getsignal(kind) == before
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 7
    monkeypatch.setattr(Classifier, "training_step", step)
    fit(config(pictures, tmp_path / "cut"), resume=True, console=QUIET)
    assert equal(whole, tmp_path / "cut")


def fit_as_the_command(given: TrainConfig) -> None:
    """Train with loader processes that are forked, as a command's are, and leave as it does."""
    multiprocessing.set_start_method("fork", force=True)
    try:
        fit(given, console=QUIET)
    except Interrupted:
        os._exit(75)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_loader_processes_too_ends_no_run(pictures, tmp_path, processes, kind):
    """As clusters send it: to all processes of a job."""
    given = config(pictures, tmp_path / "cut", epochs=200, workers=2)
    child = processes(target=fit_as_the_command, args=(given,))
    child.start()
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut" / "metrics.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        for loader in psutil.Process(child.pid).children():
            loader.send_signal(kind)
        time.sleep(1)
        os.kill(child.pid, kind)
        child.join(120)
        assert child.exitcode == 75
    finally:
        child.kill()
    path, damaged = newest_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert path is not None
    assert not damaged


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(pictures, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    fit(config(pictures, tmp_path / "run"), resume=True, console=Console(width=1000))
    said = capsys.readouterr().out
    assert "last.ckpt: the checkpoint is damaged" in said
    assert "previous.ckpt" in said
    assert equal(whole, tmp_path / "run")
    for name in ("last", "previous"):
        last.with_name(f"{name}.ckpt").write_bytes(b"cut short")
    with pytest.raises(InputError, match="damaged"):
        newest_checkpoint(last)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    file = tmp_path / "checkpoints" / "last.ckpt"
    plugin = SafeCheckpointIO()
    plugin.save_checkpoint({"state_dict": {"stem.conv.weight": torch.ones(3)}}, file)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*the one before is whole"):
        plugin.save_checkpoint({"state_dict": {"stem.conv.weight": torch.zeros(3)}}, file)
    assert [f.name for f in file.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(file, weights_only=True)["state_dict"]["stem.conv.weight"].sum() == 3


def test_a_step_that_is_not_finite_never_reaches_the_weights(pictures, tmp_path, monkeypatch):
    step = Classifier.training_step
    seen = []

    def poisoned(self, given, batch_idx):
        seen.append({key: value.clone() for key, value in self.model.state_dict().items()})
        if self.trainer.global_step in (2, 3):
            given = [given[0] * float("nan"), *given[1:]]
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", poisoned)
    fit(config(pictures, tmp_path / "run"), console=QUIET)
    counted = [key for key in seen[0] if not key.endswith("num_batches_tracked")]
    assert all(torch.equal(seen[2][key], seen[4][key]) for key in counted)
    assert not all(torch.equal(seen[4][key], seen[5][key]) for key in counted)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1].split(",")[-2] == "2"

    with pytest.raises(InputError, match=r"not finite in 2 steps in a row.*--lr"):
        fit(config(pictures, tmp_path / "stopped", max_skipped=2), console=QUIET)
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
