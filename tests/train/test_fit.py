import csv
import importlib
import json

import pytest
import timm
import torch
from rich.console import Console

from patnet import InputError, from_checkpoint, load_weights
from patnet.data import eval_transform, read_image
from patnet.train import Interrupted, TrainConfig, evaluate, fit, predict
from patnet.train.classifier import Classifier

QUIET = Console(quiet=True)
TINY = {"size": 32, "batch_size": 6, "workers": 0, "warmup_epochs": 0.5, "lr": 2e-3, "accelerator": "cpu"}


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def learnt(photos, tmp_path):
    """A run of four epochs on two classes that brightness tells apart."""
    data = photos(**{"train/a": 12, "train/b": 12, "val/a": 4, "val/b": 4, "test/a": 3, "test/b": 5})
    fitted = fit(TrainConfig(data=str(data), out=str(tmp_path / "run"), epochs=4, **TINY), console=QUIET)
    return fitted, data


def test_a_run_leaves_what_it_promises_and_learns(learnt):
    fitted, data = learnt
    run = fitted.folder.path
    names = {"config.yaml", "metrics.csv", "curves.png", "tensorboard", "best", "last", "checkpoints"}
    assert {file.name for file in run.iterdir()} == names
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4"]
    assert any(run.joinpath("tensorboard").glob("events*"))
    assert float(rows(run)[-1]["train_top1"]) > 0.5
    assert fitted.best["val_top1"] == max(float(row["val_top1"]) for row in rows(run))
    assert TrainConfig.read(run / "config.yaml").epochs == 4

    result, folder = evaluate(run, workers=0, accelerator="cpu", console=QUIET)
    eight, _ = evaluate(run, workers=0, accelerator="cpu", console=QUIET, views=8, out=run.parent / "views")
    assert (eight["views"], result["views"]) == (8, 1)
    assert eight["calibration_error"] != result["calibration_error"]
    assert result["split"] == "test"
    assert result["pictures"] == 8
    assert result["top1"] == 1
    assert json.loads((folder / "metrics.json").read_text()) == result
    made = {"metrics.json", "per_class.csv", "confusion_matrix.png", "mistakes.png"}
    assert {file.name for file in folder.iterdir()} == made

    predictions, unreadable = predict(run, [str(data / "test")], accelerator="cpu", console=QUIET)
    assert unreadable == []
    assert [p["label"] for p in predictions] == ["a"] * 3 + ["b"] * 5

    # timm alone loads the weights and computes the same
    model = timm.create_model(f"local-dir:{run / 'best'}", pretrained=True).eval()
    data_config = timm.data.resolve_data_config(model=model)
    assert data_config["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["label_names"] == ["a", "b"]
    picture = eval_transform(data_config)(read_image(predictions[0]["path"]))
    with torch.no_grad():
        probability = model(picture[None]).softmax(1).max().item()
    assert abs(probability - predictions[0]["probability"]) < 1e-5

    # the resumable checkpoint reads as weights too, and says its network
    again = from_checkpoint(run / "checkpoints" / "last.ckpt")
    last = from_checkpoint(run / "last")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), last.state_dict().values(), strict=True))
    said = load_weights(timm.create_model("patnet_t0", num_classes=5, in_chans=1), run)
    assert len(said) == 2


def test_an_interrupted_run_goes_on(photos, tmp_path, monkeypatch):
    config = TrainConfig(data=str(photos(a=12, b=12)), out=str(tmp_path / "run"), epochs=3, val_fraction=0.25, **TINY)
    step = Classifier.training_step

    def interrupted(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(config, console=QUIET)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["1"]
    monkeypatch.setattr(Classifier, "training_step", step)
    before = rows(tmp_path / "run")
    fitted = fit(config, resume=True, console=QUIET)
    assert fitted.epochs == 3
    after = rows(tmp_path / "run")
    assert after[0] == before[0]
    assert [row["epoch"] for row in after] == ["1", "2", "3"]
    assert float(after[-1]["lr"]) < float(after[0]["lr"])
    assert fit(config, resume=True, console=QUIET).epochs == 3  # nothing is left to do


def test_interrupted_before_the_first_epoch_it_starts_again(photos, tmp_path, monkeypatch):
    config = TrainConfig(data=str(photos(a=6, b=6)), out=str(tmp_path / "run"), epochs=1, **TINY)
    step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        fit(config, console=QUIET)
    monkeypatch.setattr(Classifier, "training_step", step)
    with pytest.raises(InputError, match="has not finished an epoch"):
        predict(tmp_path / "run", [str(tmp_path / "photos")], console=QUIET)
    assert fit(config, resume=True, console=QUIET).epochs == 1


def test_without_validation_the_newest_epoch_counts(photos, tmp_path):
    options = {**TINY, "in_chans": 1, "channels_last": False}
    config = TrainConfig(data=str(photos(a=6, b=6)), out=str(tmp_path / "run"), epochs=2, val_fraction=0, **options)
    assert fit(config, console=QUIET).best["epoch"] == 2
    with pytest.raises(InputError, match="has none"):
        evaluate(tmp_path / "run", console=QUIET)


def test_another_model_of_timms_trains_too(photos, tmp_path):
    config = TrainConfig(data=str(photos(a=6, b=6)), out=str(tmp_path / "run"), epochs=1, **TINY, model="fasternet_t0")
    fit(config, console=QUIET)
    predictions, _ = predict(tmp_path / "run", [str(tmp_path / "photos" / "a")], console=QUIET)
    assert len(predictions) == 6


def test_arguments_of_the_model_are_part_of_the_run(photos, tmp_path):
    args = {"partial_ratio": 0.5, "spatial_attn": "none", "mixers": ["pconv", "pat_ch", "pat_ch", "pat_sf"]}
    options = {"data": str(photos(a=6, b=6)), "epochs": 1, **TINY}
    fit(TrainConfig(out=str(tmp_path / "run"), model_args=args, **options), console=QUIET)
    for path in ("run", "run/checkpoints/last.ckpt"):
        model = from_checkpoint(tmp_path / path)
        assert model.stages[0].blocks[0].mixer.split == [16, 16]
        assert isinstance(model.stages[0].blocks[0].mlp.attn, torch.nn.Identity)
    for wrong in ({"partial_ratio": 0.01}, {"channel_attn": "gausian"}, {"num_heads": 7}, {"nothing_such": 1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            fit(TrainConfig(out=str(tmp_path / "other"), model_args=wrong, **options), console=QUIET)
    assert not (tmp_path / "other").exists()


def test_six_classes_give_top5_and_weights_start_a_new_run(learnt, tmp_path):
    data = tmp_path / "photos"
    classes = tmp_path / "six"
    for name in "uvwxyz":
        (classes / name).mkdir(parents=True)
        for i, file in enumerate(sorted((data / "train" / "b").iterdir())[:4]):
            (classes / name / f"{i}.png").write_bytes(file.read_bytes())
    config = TrainConfig(
        data=str(classes), out=str(tmp_path / "new"), epochs=1, weights=str(tmp_path / "run"), val_fraction=0.25, **TINY
    )
    fitted = fit(config, console=QUIET)
    assert 0 <= fitted.best["val_top5"] <= 1
    result, _ = evaluate(tmp_path / "new", console=QUIET, workers=0)
    assert result["split"] == "val"
    assert "top5" in result


def test_more_workers_than_memory_are_warned_of(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("patnet.train.fit"), "available_memory", lambda: 1000)
    console = Console(record=True, width=200, file=(tmp_path / "said").open("w"))
    data = photos(**{"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    fit(TrainConfig(data=str(data), out=str(tmp_path / "run"), epochs=1, **TINY | {"workers": 1}), console=console)
    assert "Warning: --workers 1: take" in console.export_text()
