"""Several processes compute what one computes."""

import os
import signal

import pytest
import torch
from train.running import QUIET, config, in_ranks, results, rows, run, weights, write_noise

from patnet import InputError, load
from patnet.train import Interrupted, evaluate, train
from patnet.train.classifier import Classifier

# A low learning rate, because a high one amplifies how sums over processes are rounded.
OPTIONS = {
    "workers": 1,
    "epochs": 1,
    "lr": 1e-4,
    "clip_grad": 1.0,
    "mixup": 0.4,
    "cutmix": 1.0,
    "drop": 0.1,
    "drop_path": 0.1,
    "model_ema_decay": 0.9,
    "global_batch_size": 8,
    "batch_size": 4,
}


def train_noting_losses(given, stop_at=None, resume=False):
    """Train, and give step, loss and images of each batch of this process; stop in the step `stop_at`."""
    losses = []
    step = Classifier.training_step

    def noting(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        losses.append((self.trainer.global_step, loss.item(), len(batch[1])))
        if self.trainer.global_step == stop_at and self.trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss

    Classifier.training_step = noting
    try:
        train(given, resume=resume, console=QUIET)
        assert stop_at is None
    except Interrupted:
        assert stop_at is not None
    return losses


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    write_noise(root / "images", **{"train/a": 52, "train/b": 52, "val/a": 5, "val/b": 6})
    return root


@pytest.fixture(scope="module")
def start(root):
    """Trains in a number of processes; gives the loss of each step, the mean over the processes."""

    def start(name, processes, *, stop_at=None, resume=False, slurm=False, **options):
        given = config(root / "images", root / name, **{**OPTIONS, **options})
        steps: dict[int, list[tuple[float, int]]] = {}
        for losses in in_ranks(train_noting_losses, given, stop_at, resume, processes=processes, slurm=slurm):
            for step, loss, images in losses:
                steps.setdefault(step, []).append((loss, images))
        return [sum(loss * n for loss, n in parts) / sum(n for _, n in parts) for _, parts in sorted(steps.items())]

    return start


@pytest.fixture(scope="module")
def alone(start):
    return start("alone", 1)


@pytest.fixture(scope="module")
def together(start):
    return start("together", 2)


def test_two_processes_take_the_steps_of_one(root, alone, together):
    assert len(alone) == len(together) == 13
    assert alone == pytest.approx(together, abs=1e-4)
    assert len(rows(root / "alone")) == len(rows(root / "together")) == 1


def test_sharded_weights_are_saved_unsharded_and_resumed(root, start, together):
    assert start("sharded", 2, strategy="fsdp") == pytest.approx(together, abs=1e-4)
    assert len(start("stopped", 2, strategy="fsdp", stop_at=3)) == 10  # several processes stop at each tenth step
    start("stopped", 2, strategy="fsdp", resume=True)
    for checkpoint in ("best", "last"):
        ours, theirs = (weights(root / name, checkpoint) for name in ("sharded", "stopped"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for ours, theirs in zip(results(root / "sharded"), results(root / "stopped"), strict=True):
        for name in ("train_loss", "train_top1"):  # of an epoch that was stopped too
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-6)
    # The saved network is the one that was validated.
    metrics, _ = evaluate(load(root / "stopped", checkpoint="last"), split="val", accelerator="cpu", console=QUIET)
    assert metrics["top1"] == pytest.approx(float(rows(root / "stopped")[-1]["val_top1"]), abs=1e-6)


def test_a_run_resumes_with_another_number_of_processes(root, start, alone):
    first = start("fewer", 2, stop_at=3)
    # But not where its steps would be other ones.
    changed = (root / "fewer" / "config.yaml").read_text().replace("global_batch_size: 8", "global_batch_size: 4")
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text(changed)
    (root / "other" / "checkpoints").symlink_to(root / "fewer" / "checkpoints")
    with pytest.raises(InputError, match=r"its global batch size is 8, here it would be 4"):
        run(root / "images", root / "other", resume=True, **OPTIONS | {"global_batch_size": 4})
    rest = start("fewer", 1, resume=True)
    assert (len(first), len(rest)) == (10, 3)
    assert first + rest == pytest.approx(alone, abs=1e-4)
    for ours, theirs in zip(results(root / "alone"), results(root / "fewer"), strict=True):
        assert float(theirs["train_loss"]) == pytest.approx(float(ours["train_loss"]), rel=1e-4)


def test_tasks_of_slurm_take_the_steps_of_torchruns(start, together):
    assert start("slurm", 2, slurm=True, devices="2", num_nodes=1) == together


def train_on_own_folder(root):
    """Train on a folder of images of the rank's own; the error message."""
    try:
        run(root / os.environ["RANK"], root / "run")
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("other", [None, "renamed", "fewer"])
def test_processes_with_other_data_stop_all(tmp_path, other):
    for rank in ("0", "1"):
        write_noise(tmp_path / rank, **{"train/a": 8, "train/b": 8, "val/a": 1, "val/b": 1})
    if other == "renamed":
        (tmp_path / "1" / "train" / "a" / "00.png").rename(tmp_path / "1" / "train" / "a" / "zz.png")
    elif other == "fewer":
        (tmp_path / "1" / "train" / "a" / "00.png").unlink()
    first, second = in_ranks(train_on_own_folder, tmp_path)
    if other is None:
        assert (first, second) == (None, None)
    else:
        assert "the processes have different data" in first
        assert f"process 1 has {15 if other == 'fewer' else 16} training images" in second
