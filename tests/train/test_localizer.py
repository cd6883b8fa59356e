"""Learning from painted defects, and starting from what was learned."""

import csv

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from patnet.data import elpv
from patnet.errors import InputError
from patnet.train import TrainConfig, evaluate, fit
from patnet.train.plan import plan

TINY = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 16}


@pytest.fixture(autouse=True, scope="module")
def few_cells():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elpv, "PAINTED", 48)
        patch.setattr(elpv, "PAINTED_VAL", 24)
        yield


def options_of(folder, **options):
    usual = {
        "data": "elpv-painted",
        "model_args": TINY,
        "size": 32,
        "in_chans": 1,
        "batch_size": 16,
        "epochs": 2,
        "warmup_epochs": 0,
        "workers": 0,
        "accelerator": "cpu",
        "min_area": 1.0,
        "hflip": 0.0,
        "color_jitter": 0.0,
    }
    return TrainConfig(out=str(folder), **{**usual, **options})


def learn(folder, **options):
    return fit(options_of(folder, **options), console=Console(quiet=True))


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted") / "run"
    learn(folder, ema_decay=0.9)
    return folder


def test_a_run_tells_how_well_kinds_are_told(painted):
    with (painted / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(0 <= float(row["val_kinds"]) <= 1 and float(row["train_loss"]) > 0 for row in rows)
    assert "val_top1" not in rows[0]
    assert (painted / "curves.png").stat().st_size > 10_000
    # The heads for the maps belong to training alone.
    assert not any(name.startswith("heads") for name in load_file(painted / "best" / "model.safetensors"))


def test_a_classifier_starts_from_it(painted, tmp_path, photos):
    data = photos(**{"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    tuned = tmp_path / "tuned"
    # A rate at which nothing moves: what is learned was there before.
    learn(tuned, data=str(data), weights=str(painted), epochs=1, batch_size=4, lr=1e-12, min_lr=0.0, weight_decay=0.0)
    before, after = (load_file(run / "best" / "model.safetensors") for run in (painted, tuned))
    kept = [name for name in before if name.endswith(("mlp.conv1.weight", "mlp.conv2.weight"))]
    assert len(kept) == 8
    for name in kept:
        torch.testing.assert_close(after[name], before[name])


def test_more_learning_finds_more(tmp_path, monkeypatch):
    monkeypatch.setattr(elpv, "PAINTED", 256)
    learn(tmp_path / "run", epochs=6, lr=4e-3, batch_size=32)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]


def test_it_is_planned_as_it_is_trained(tmp_path):
    planned = plan(options_of(tmp_path / "run"), seconds=0.4, console=Console(quiet=True))
    assert planned["steps_per_epoch"] == 3
    assert planned["phases"][0]["computing"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.2}, r"--mixup 0.2: not on elpv-painted"),
        ({"compile": True}, r"--compile True: not on elpv-painted"),
        ({"balance": "weights"}, r"--balance weights: not on elpv-painted"),
        ({"strategy": "fsdp"}, r"--strategy fsdp: not on elpv-painted"),
    ],
)
def test_options_without_a_meaning_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        learn(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_it_is_not_evaluated_as_a_classifier(painted):
    with pytest.raises(InputError, match="has masks and no classes to evaluate"):
        evaluate(painted, split="val", accelerator="cpu")
