"""Runs from the options to the checkpoints, with our data and modules and with a user's own."""

import importlib
import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MeanMetric, MetricCollection
from train.running import OPTIONS, QUIET, config, rows, run, weights

from patnet import InputError, load, load_weights
from patnet.data import DataSplits
from patnet.data.batches import TrainBatches
from patnet.data.loading import SeededDataset, TrainLoader, eval_loader
from patnet.train import ClassificationData, Interrupted, RunConfig, RunData, RunModule, TrainConfig, fit
from patnet.train.classifier import Classifier
from patnet.train.config import PositiveInt
from patnet.train.figures import Panel
from patnet.train.module import COMPUTING


def test_a_run_writes_its_files_and_learns(images_dir, tmp_path):
    data = images_dir(**{"train/a": 12, "train/b": 12, "val/a": 4, "val/b": 4})
    out = tmp_path / "run"
    result = run(data, out, epochs=4, batch_size=6)
    names = {"config.yaml", "metrics.csv", "curves.png", "tensorboard", "best", "last", "checkpoints"}
    assert {file.name for file in out.iterdir()} == names
    assert any(out.joinpath("tensorboard").glob("events*"))
    assert [row["epoch"] for row in rows(out)] == ["1", "2", "3", "4"]
    assert result.best["val_top1"] == max(float(row["val_top1"]) for row in rows(out)) > 0.5
    assert TrainConfig.read(out / "config.yaml") == config(data, out, epochs=4, batch_size=6)

    # timm alone loads the weights, and what patnet loads from each checkpoint computes the same
    ours, theirs = load(out), timm.create_model(f"local-dir:{out / 'best'}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.model(x), theirs(x))
    assert ours.class_names == theirs.pretrained_cfg["label_names"] == ["a", "b"]
    assert torch.equal(load(out / "checkpoints" / "last.ckpt").model(x), load(out, checkpoint="last").model(x))
    last, saved = load(out / "checkpoints" / "last.ckpt"), load(out, checkpoint="last")
    assert last.class_names == saved.class_names
    assert json.loads(json.dumps(last.data_config)) == json.loads(json.dumps(saved.data_config))
    grey = timm.create_model("patnet_t0", num_classes=5, in_chans=1, **OPTIONS["model_kwargs"])
    assert len(load_weights(grey, out)) == 2


def test_interrupted_before_the_first_step_it_starts_again(images_dir, tmp_path, monkeypatch):
    data = images_dir(a=6, b=6)
    monkeypatch.setattr(Classifier, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        run(data, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match="has not finished an epoch"):
        load(tmp_path / "run")
    with pytest.raises(InputError, match="resume it with --resume"):
        run(data, tmp_path / "run", epochs=1)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"cannot be resumed with other options \(--lr is 0.002 there and 0.1 here\)"):
        run(data, tmp_path / "run", epochs=1, lr=0.1, resume=True)
    assert run(data, tmp_path / "run", epochs=1, resume=True).epochs == 1


@pytest.mark.parametrize(
    "options",
    [
        {"in_chans": 1, "channels_last": False},
        {"model": "fasternet_t0", "model_kwargs": {}},
        {"epochs": 1, "warmup_epochs": None},
    ],
    ids=["grey", "fasternet_t0", "one epoch"],
)
def test_without_validation_the_last_epoch_is_the_best(images_dir, tmp_path, options):
    result = run(images_dir(a=6, b=6), tmp_path / "run", val_fraction=0, **options)
    assert result.best["epoch"] == options.get("epochs", 2)
    assert "val_loss" not in rows(tmp_path / "run")[0]


def test_arguments_of_the_model_are_part_of_the_run(images_dir, tmp_path):
    args = {**OPTIONS["model_kwargs"], "partial_ratio": 0.5, "mixers": ["pconv", "pat_ch", "pat_ch", "pat_sf"]}
    data = images_dir(a=6, b=6)
    run(data, tmp_path / "run", epochs=1, model_kwargs=args)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        assert load(path).model.stages[0].blocks[0].mixer.split == [4, 4]
    for wrong in ({"partial_ratio": 0.01}, {"channel_attn": "gausian"}, {"num_heads": 7}, {"nothing_such": 1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            run(data, tmp_path / "other", model_kwargs={**OPTIONS["model_kwargs"], **wrong})
    assert not (tmp_path / "other").exists()


def test_weights_start_a_run_of_six_classes(checkpoint_dir, images_dir, tmp_path):
    data = images_dir(u=4, v=4, w=4, x=4, y=4, z=4)
    options = {"weights": str(checkpoint_dir), "val_fraction": 0.25, "epochs": 1, "lr": 1e-12, "min_lr": 0.0}
    result = run(data, tmp_path / "run", **options)
    assert 0 <= result.best["val_top5"] <= 1
    started, trained = weights(checkpoint_dir.parent, checkpoint_dir.name), weights(tmp_path / "run")
    torch.testing.assert_close(trained["stem.conv.weight"], started["stem.conv.weight"])


def test_one_class_and_workers_beyond_the_memory(images_dir, tmp_path, monkeypatch):
    data = images_dir(**{"one/a": 5, "two/a": 3, "two/b": 3})
    with pytest.raises(InputError, match=r"one'?: has the single class a; a classifier needs two"):
        run(data / "one", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(importlib.import_module("patnet.train.data"), "available_memory", lambda: 1000)
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    run(data / "two", tmp_path / "run", console=console, epochs=1, workers=1, val_fraction=0)
    assert "Warning: --workers 1: " in console.export_text()


class Ramps(Dataset):
    """Numbers and their doubles."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return np.float32(index / 16), np.float32(index / 8)


@dataclass(kw_only=True)
class RegressionConfig(RunConfig):
    """The options of a regression.

    Args:
        width: Hidden units.
    """

    COMMAND = "regression"
    width: PositiveInt = 4


class RegressionData(RunData):
    train_size = 16

    def train_loader(self):
        batches = TrainBatches(16, self.batches, self.config.seed, rank=self.rank)
        return TrainLoader(SeededDataset(Ramps(), self.config.seed, [(0, lambda x: torch.tensor([x]))]), batches)

    def val_dataloader(self):
        return eval_loader(
            Ramps(), 4, transform=lambda x: torch.tensor([x]), world=self.batches.devices, rank=self.rank
        )

    def identity(self):
        return []


class Regression(RunModule):
    title = "regression"
    curves = (Panel("Squared error", "", {"train_loss": "training", "val_error": "validation"}, log=True),)

    def __init__(self, config, model):
        super().__init__(config, model)
        self.train_metrics = MetricCollection({"loss": MeanMetric()}, prefix="train_", compute_groups=False)

    def training_step(self, batch, batch_idx):
        self.seed_step(COMPUTING, batch_idx)
        loss = (self.model(batch[0])[:, 0] - batch[1]).square().mean()
        self.train_metrics["loss"].update(loss.detach())
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch, batch_idx):
        error = (self.eval_model(batch[0])[:, 0] - torch.tensor(batch[1])).square().mean()
        self.log("val_error", error, batch_size=len(batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)

    def monitor(self, row):
        return -row["val_error"]

    def summary(self, row):
        return f"error {row['val_error']:.3f}"

    def save(self, model, directory):
        directory.mkdir(exist_ok=True)
        torch.save(model.state_dict(), directory / "weights.pt")


def make_regression(data, checkpoint):
    width = data.config.width
    return Regression(data.config, nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 1)))


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_a_config_data_and_module_of_ones_own(tmp_path, monkeypatch, batch_size):
    def options(name):
        own = {"epochs": 6, "batch_size": batch_size, "global_batch_size": 4, "lr": 0.03, "model_ema_decay": 0.5}
        return RegressionConfig(data="ramps", out=str(tmp_path / name), workers=0, accelerator="cpu", **own)

    def train(name, resume=False):
        given = options(name) if not resume else RegressionConfig.read(tmp_path / name / "config.yaml")
        return fit(given, RegressionData(given), make_regression, resume=resume, console=QUIET)

    result = train("run")
    assert result.best["val_error"] < float(rows(tmp_path / "run")[0]["val_error"])
    step = Regression.training_step

    def interrupt(self, batch, batch_idx):
        if self.trainer.global_step == 9:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Regression, "training_step", interrupt)
    with pytest.raises(Interrupted):
        train("stopped")
    monkeypatch.undo()
    train("stopped", resume=True)
    ours, theirs = (torch.load(tmp_path / name / "best" / "weights.pt") for name in ("run", "stopped"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


class Brightness(Dataset):
    """Dark and bright images."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return Image.new("RGB", (40, 36), (200 * (index % 2),) * 3), index % 2


def test_a_data_set_of_ones_own(tmp_path):
    given = config("brightness", tmp_path / "run", epochs=1)
    data = ClassificationData(given, DataSplits(["dark", "bright"], Brightness(), Brightness()))
    fit(given, data, partial(Classifier, given), console=QUIET)
    assert load(tmp_path / "run").class_names == ["dark", "bright"]
    balanced = config("brightness", tmp_path / "balanced", balance="weights")
    data = ClassificationData(balanced, data.splits)
    with pytest.raises(InputError, match="--balance: this data set has no list of its labels"):
        fit(balanced, data, partial(Classifier, balanced), console=QUIET)
