"""A data set and a module of one's own: pretraining on painted defects, and training that starts from it."""

import csv
import signal

import pretrain
import pytest
import torch
import yaml
from pretrain import Localizer, PaintedData, make_localizer
from rich.console import Console
from safetensors.torch import load_file

from patnet import InputError
from patnet.cli import main
from patnet.data.elpv import solar_cells
from patnet.train import Interrupted, TrainConfig, fit, train

QUIET = Console(quiet=True)
RECIPE = yaml.safe_load(pretrain.RECIPES["painted"].read_text())
SMALL = {
    "model_kwargs": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 16},
    "img_size": 32,
    "cache_size": None,
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 0,
    "workers": 0,
    "accelerator": "cpu",
}


def pretrained(out, count=48, resume=False, **options):
    config = TrainConfig(**{**RECIPE, **SMALL, "out": str(out), **options})
    fit(config, PaintedData(config, count, 24), make_localizer, resume=resume, console=QUIET)
    return out


def metrics(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("painted") / "run", model_ema_decay=0.9)


def test_test_cells_and_defective_ones_take_no_part():
    splits = PaintedData(TrainConfig(**{**RECIPE, "out": "run", "cache_size": None})).splits
    cells = {cell.path: cell for cell in solar_cells()}
    train_files, val_files = ({path for path, _ in part.samples} for part in (splits.train, splits.val))
    assert not train_files & val_files
    functional = {path for path, cell in cells.items() if cell.probability == 0 and not cell.test}
    assert train_files | val_files == functional


def test_the_run_logs_its_metrics_and_saves_the_network_alone(painted):
    rows = metrics(painted)
    assert len(rows) == 2
    assert all(0 <= float(row["val_accuracy"]) <= 1 and float(row["train_loss"]) > 0 for row in rows)
    assert (painted / "curves.png").stat().st_size > 10_000
    assert not any(name.startswith("heads") for name in load_file(painted / "best" / "model.safetensors"))


def test_a_classifier_starts_from_it(painted, tmp_path, images_dir):
    data = images_dir(**{"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    # With a learning rate at which nothing moves, the weights are those of the pretraining.
    options = {"epochs": 1, "batch_size": 4, "lr": 1e-12, "min_lr": 0.0, "weight_decay": 0.0, "weights": str(painted)}
    train(
        TrainConfig(**{**SMALL, **options, "data": str(data), "out": str(tmp_path / "run"), "in_chans": 1}),
        console=QUIET,
    )
    before, after = (load_file(run / "best" / "model.safetensors") for run in (painted, tmp_path / "run"))
    kept = [name for name in before if name.endswith(("mlp.conv1.weight", "mlp.conv2.weight"))]
    assert len(kept) == 8
    assert all(torch.allclose(after[name], before[name]) for name in kept)


def test_an_interrupted_run_resumes_bit_by_bit(tmp_path, monkeypatch):
    uninterrupted = pretrained(tmp_path / "uninterrupted")
    step, count = Localizer.training_step, [0]

    def interrupted(self, batch, batch_idx):
        count[0] += 1
        if count[0] == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Localizer, "training_step", interrupted)
    with pytest.raises(Interrupted):
        pretrained(tmp_path / "cut")
    monkeypatch.undo()
    cut = pretrained(tmp_path / "cut", resume=True)
    a, b = (load_file(run / "last" / "model.safetensors") for run in (uninterrupted, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss(tmp_path):
    losses = [float(row["train_loss"]) for row in metrics(pretrained(tmp_path / "run", 96, epochs=4, lr=8e-3))]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"torchcompile": True}, {"strategy": "fsdp"}])
def test_options_without_a_meaning_are_refused(tmp_path, options):
    with pytest.raises(InputError, match=next(iter(options))):
        pretrained(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_command_reports_bad_input_in_one_message(tmp_path, capfd):
    assert main(["--out", str(tmp_path / "none"), "--resume"], pretrain) == 2
    err = capfd.readouterr().err
    assert str(tmp_path / "none") in err
    assert err.count("\n") == 1
