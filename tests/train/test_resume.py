"""Runs that are killed, stopped by a signal, or interrupted resume as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from rich.console import Console
from train.running import QUIET, RANDOM, config, equal_weights, forked, results, rows, run, weights, write_noise

from patnet import InputError
from patnet.train import Interrupted, RunDirectory, train
from patnet.train.callbacks import Recorder
from patnet.train.classifier import Classifier
from patnet.train.run import SafeCheckpointIO

OPTIONS = {**RANDOM, "checkpoint_minutes": 1e-9}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("images"), **{"train/a": 10, "train/b": 10, "val/a": 3, "val/b": 3})


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(images, out, **OPTIONS)
    return out


@pytest.fixture
def steps(monkeypatch):
    """Calls a function before each training step."""
    step = Classifier.training_step

    def patch(before):
        def patched(self, batch, batch_idx):
            return step(self, before(self, batch) or batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", patched)

    yield patch
    monkeypatch.undo()


def train_and_exit(given, resume=False):
    """Train as a command does: loader processes are forked, and an interruption has an exit code."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    try:
        train(given, resume=resume, console=QUIET)
    except Interrupted:
        os._exit(75)


@pytest.mark.parametrize("wanted", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_weights(images, uninterrupted, tmp_path, wanted):
    forked().Process(target=os.getpid).start()  # so that the first run is not killed while torch is imported
    start = time.monotonic()
    run(images, tmp_path / "again", **OPTIONS)
    limit = time.monotonic() - start
    assert equal_weights(uninterrupted, tmp_path / "again")
    kills, runs, rng = 0, 0, random.Random(0)
    while kills < wanted:
        out, finished, runs = tmp_path / f"killed{runs}", False, runs + 1
        while not finished:
            given = config(images, out, **OPTIONS)
            child = forked().Process(target=train_and_exit, args=(given, (out / "config.yaml").is_file()))
            child.start()
            child.join(None if kills == wanted else rng.uniform(0, limit))
            finished = child.exitcode == 0
            if child.exitcode is None:
                child.kill()
                child.join()
                kills += 1
            assert child.exitcode in (0, -signal.SIGKILL)
        assert equal_weights(uninterrupted, out)
        assert not list(out.rglob(".writing-*"))


@pytest.mark.parametrize(("batch", "workers"), [(0, 0), (2, 2), (5, 0)])
def test_interrupted_anywhere_the_metrics_are_equal_too(images, uninterrupted, tmp_path, steps, batch, workers):
    count = iter(range(100))

    def interrupt(module, given):
        if next(count) == batch:
            raise KeyboardInterrupt

    steps(interrupt)
    with pytest.raises(Interrupted):
        run(images, tmp_path / "run", workers=workers, **OPTIONS)
    run(images, tmp_path / "run", resume=True, workers=workers, **OPTIONS)
    assert equal_weights(uninterrupted, tmp_path / "run")
    assert results(uninterrupted) == results(tmp_path / "run")


def test_a_signal_saves_within_the_epoch(images, uninterrupted, tmp_path, steps):
    options = {**OPTIONS, "checkpoint_minutes": 60}
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        before = signal.getsignal(number)
        out = tmp_path / number.name
        stop = partial(os.kill, os.getpid(), number)
        steps(lambda module, given, stop=stop: stop() if module.trainer.global_step == 6 else None)
        with pytest.raises(Interrupted) as stopped:
            run(images, out, **options)
        assert stopped.value.signal == number
        assert signal.getsignal(number) == before
        assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7
    steps(lambda module, given: None)
    run(images, out, resume=True, **options)
    assert equal_weights(uninterrupted, out)
    assert run(images, out, resume=True, **options).epochs == 2  # nothing is left to do


def test_a_signal_to_the_loader_processes_too_ends_no_run(images, tmp_path):
    """As clusters send it: to all processes of a job."""
    out = tmp_path / "run"
    child = forked().Process(target=train_and_exit, args=(config(images, out, epochs=200, workers=2),))
    child.start()
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        for loader in psutil.Process(child.pid).children():
            loader.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        os.kill(child.pid, signal.SIGTERM)
        child.join(120)
        assert child.exitcode == 75
    finally:
        child.kill()
    assert RunDirectory(out).newest_checkpoint(QUIET) is not None


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(images, uninterrupted, tmp_path, capsys):
    shutil.copytree(uninterrupted, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    run(images, tmp_path / "run", resume=True, console=Console(width=1000), **OPTIONS)
    out = capsys.readouterr().out
    assert "last.ckpt: the checkpoint is damaged" in out
    assert "previous.ckpt" in out
    assert equal_weights(uninterrupted, tmp_path / "run")
    for name in ("last", "previous"):
        last.with_name(f"{name}.ckpt").write_bytes(b"cut short")
    with pytest.raises(InputError, match="damaged"):
        RunDirectory(tmp_path / "run").newest_checkpoint(QUIET)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    file = tmp_path / "checkpoints" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.ones(3)}}, file)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*the previous checkpoint is intact"):
        SafeCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.zeros(3)}}, file)
    assert [f.name for f in file.parent.iterdir()] == ["last.ckpt"]
    assert torch.load(file, weights_only=True)["state_dict"]["weight"].sum() == 3


def test_a_step_that_is_not_finite_does_not_reach_the_weights(images, tmp_path, steps):
    seen = []

    def poison(module, batch):
        seen.append({key: value.clone() for key, value in module.model.state_dict().items()})
        return [batch[0] * float("nan"), *batch[1:]] if module.trainer.global_step in (2, 3) else None

    steps(poison)
    run(images, tmp_path / "run", **OPTIONS)
    counted = [key for key in seen[0] if not key.endswith("num_batches_tracked")]
    assert all(torch.equal(seen[2][key], seen[4][key]) for key in counted)
    assert not all(torch.equal(seen[4][key], seen[5][key]) for key in counted)
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
    assert rows(tmp_path / "run")[0]["skipped"] == "2"

    with pytest.raises(InputError, match=r"not finite in 2 consecutive steps.*--lr"):
        run(images, tmp_path / "stopped", max_nonfinite=2, **OPTIONS)
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_run_that_stops_early_does_so_after_an_interruption_too(images, tmp_path, monkeypatch):
    options = {"epochs": 6, "patience": 2, "lr": 1e-12, "warmup_epochs": 0}  # which learns nothing
    run(images, tmp_path / "whole", **options)
    print_epoch = Recorder._print

    def interrupt(self, module, row, epochs):
        print_epoch(self, module, row, epochs)
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Recorder, "_print", interrupt)
    with pytest.raises(Interrupted):
        run(images, tmp_path / "run", **options)
    monkeypatch.undo()
    for _ in range(2):  # the second time there is nothing left to train
        run(images, tmp_path / "run", resume=True, **options)
        assert results(tmp_path / "run") == results(tmp_path / "whole")
        assert len(rows(tmp_path / "run")) == 3
        assert equal_weights(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("change", ["another class", "fewer images", "other images"])
def test_a_run_is_not_resumed_on_other_data(tmp_path, change):
    data = write_noise(tmp_path / "images", **{"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    run(data, tmp_path / "run")
    if change == "another class":
        write_noise(data, **{"train/c": 2, "val/c": 2})
    elif change == "fewer images":
        (data / "train" / "a" / "00.png").unlink()
    else:
        (data / "train" / "a" / "00.png").rename(data / "train" / "a" / "new.png")
    with pytest.raises(InputError, match="its data have changed: it had 12 training images"):
        run(data, tmp_path / "run", resume=True)
