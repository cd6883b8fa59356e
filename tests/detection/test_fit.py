"""Detectors are trained in run folders, go on where they were, and refuse what does not go together."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.data.panels import write_panels
from patnet.detection import build, load_detector, save_detector
from patnet.detection.config import DetectConfig
from patnet.detection.fit import fit, open_run_pictures
from patnet.detection.module import DetectorModule, rate_at
from patnet.detection.recipes import RECIPES
from patnet.train.fit import Interrupted
from patnet.train.runs import summarise_run

QUIET = Console(quiet=True)
FEW = {
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}
SMALL = {
    "backbone_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "drop_path_rate": 0.1},
    "detector_args": FEW,
    "in_chans": 1,
    "width": 16,
    "size": 64,
    "max_size": 96,
    "epochs": 2,
    "batch_size": 2,
    "warmup_steps": 2,
    "drop_epochs": [1],
    "val_fraction": 0.25,
    "ema_decay": 0.9,
    "workers": 0,
    "accelerator": "cpu",
}


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "panels"
    write_panels(out, train=8, test=2, size=96, most=3)
    return out


def config(data: Path, out: Path, **options) -> DetectConfig:
    return DetectConfig(data=str(data), out=str(out), **{**SMALL, **options})


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / which / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(panels, tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(config(panels, out), console=QUIET)
    return out


def test_a_run_leaves_what_it_is_about(whole, panels):
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    losses = [
        float(rows[1][f"train_loss_{name}"]) for name in ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
    ]
    assert float(rows[1]["train_loss"]) == pytest.approx(sum(losses), rel=1e-5)
    assert all(0 <= float(row[f"val_{kind}_AP"]) <= 1 for row in rows for kind in ("box", "mask"))
    assert DetectConfig.read(whole / "config.yaml").detector_args == FEW
    assert (whole / "curves.png").stat().st_size > 1000
    trained = load_detector(whole, "last")
    assert trained.class_names == ["functional", "defective"]
    assert (trained.category_ids, trained.mode, trained.run.path) == ([1, 2], "L", whole)
    assert equal(trained.model.state_dict(), weights(whole))
    summary = summarise_run(whole)
    assert (summary.state, summary.model, summary.epochs) == ("finished", "mask_rcnn patnet_t0", 2)
    assert summary.best_ap is not None


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_run_ends_with_the_same_weights_to_the_bit(whole, panels, tmp_path, monkeypatch, stop):
    step = DetectorModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == stop and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            os.kill(os.getpid(), 15)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DetectorModule, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(config(panels, tmp_path / "run"), console=QUIET)
    fit(config(panels, tmp_path / "run"), resume=True, console=QUIET)
    assert equal(weights(tmp_path / "run"), weights(whole))


@pytest.mark.slow  # three times the import of everything
def test_two_processes_learn_what_one_learns_in_two_parts(panels, tmp_path):
    options = {**SMALL, "global_batch_size": 2, "batch_size": 1, "val_fraction": 0.25, "ema_decay": None}
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump({**options, "data": str(panels)}))
    for name, launch in {
        "one": [],
        "two": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"],
    }.items():
        command = ["-m", "patnet", "detect", "train", "--config", str(file), "--out", str(tmp_path / name)]
        subprocess.run(
            [sys.executable, *launch, *command],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=300,
        )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        if "running_" in key or "num_batches" in key:
            continue  # which the first process alone keeps
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    tables = [list(csv.DictReader(lines)) for lines in rows]
    for first, second in zip(*tables, strict=True):
        assert float(second["train_loss"]) == pytest.approx(float(first["train_loss"]), rel=1e-4)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_detectors_of_boxes_are_trained_too(panels, tmp_path, detector):
    args = FEW if detector == "faster_rcnn" else {}
    fit(
        config(panels, tmp_path / "run", detector=detector, detector_args=args, epochs=1, drop_epochs=[]), console=QUIET
    )
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert "val_box_AP" in row
    assert "val_mask_AP" not in row


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed", "channels_last": True},
        {"grad_checkpointing": True, "train_sizes": [64, 80], "size": 72, "schedule": "cosine", "norm": "frozen"},
        {"batch_size": 1, "global_batch_size": 4, "keep_empty": False, "clip_grad": 1.0, "warmup_steps": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_ways_to_train(panels, tmp_path, options):
    fit(config(panels, tmp_path / "run", epochs=1, **options), console=QUIET)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    assert 0 < float(row["train_loss"]) < 20
    assert row["skipped"] == "0"


def test_checkpointing_computes_the_same(panels, tmp_path, whole):
    fit(config(panels, tmp_path / "run", grad_checkpointing=True), console=QUIET)
    again = weights(tmp_path / "run")
    for key, value in weights(whole).items():
        if "running_" not in key and "num_batches" not in key:  # which see each batch twice
            torch.testing.assert_close(again[key], value, rtol=1e-3, atol=1e-4)


def test_a_trained_detector_is_started_from_with_other_classes(panels, whole, tmp_path):
    content = json.loads((panels / "annotations" / "instances_train.json").read_text())
    content["categories"] = [{"id": 7, "name": "cell"}]
    for one in content["annotations"]:
        one["category_id"] = 7
    (tmp_path / "cells.json").write_text(json.dumps(content))
    options = {"images": str(panels / "train"), "start": str(whole), "in_chans": None, "backbone_args": {}}
    fit(config(tmp_path / "cells.json", tmp_path / "run", epochs=1, lr=1e-9, ema_decay=None, **options), console=QUIET)
    trained = load_detector(tmp_path / "run")
    assert (trained.class_names, trained.category_ids) == (["cell"], [7])
    before, after = weights(whole, "best"), weights(tmp_path / "run")
    key = "roi_heads.box_head.fc6.weight"
    torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)
    assert after["roi_heads.box_predictor.cls_score.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 3}, "--num_classes 3: .* has 2 .1 functional, 2 defective.; give 2"),
        ({"detector": "mask_rcn"}, "did you mean 'mask_rcnn'"),
        ({"backbone": "patnet_t9"}, "--backbone patnet_t9: no such model"),
        ({"backbone": "vit_tiny_patch16_224", "backbone_args": {}, "in_chans": None}, "strides"),
        ({"size": 200}, "--size .200.: must lie in 32 to --max_size 96"),
        ({"val_fraction": 0.01}, "--val_fraction 0.01: is 0 of the 8 pictures"),
        ({"warmup_steps": 6}, "--warmup_steps 6: leaves none of the run's 6 steps"),
        ({"train_split": "nowhere"}, "has no one split 'nowhere'"),
        ({"detector_args": {"anchors": 3}}, "takes no argument 'anchors'"),
        ({"start": "nowhere"}, "nowhere: no such run"),
        ({"weights": "a", "start": "b"}, "choose one"),
        ({"lr": -1.0}, "--lr -1.0: must be above 0"),
    ],
)
def test_what_does_not_go_together_is_said(panels, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        fit(config(panels, tmp_path / "run", **options), console=QUIET)
    assert not (tmp_path / "run").exists()


def test_validation_pictures_have_the_same_categories(panels, tmp_path):
    content = json.loads((panels / "annotations" / "instances_test.json").read_text())
    content["categories"][1]["name"] = "broken"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"categories \(1 functional, 2 broken\) are not those of"):
        open_run_pictures(
            config(panels, tmp_path, val_data=str(tmp_path / "val.json"), val_images=str(panels / "test"))
        )


def test_pictures_without_objects_are_left_out_where_asked(panels, tmp_path):
    content = json.loads((panels / "annotations" / "instances_train.json").read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1]
    (tmp_path / "some.json").write_text(json.dumps(content))
    options = {"images": str(panels / "train"), "val_fraction": 0.0}
    assert len(open_run_pictures(config(tmp_path / "some.json", tmp_path, **options)).train.pictures) == 8
    kept = open_run_pictures(config(tmp_path / "some.json", tmp_path, keep_empty=False, **options)).train.pictures
    assert [picture.id for picture in kept] == [2, 3, 4, 5, 6, 7, 8]


def test_another_kind_of_run_is_named(whole, panels, tmp_path, capsys):
    assert main(["train", "--resume", "--out", str(whole)]) == 2
    assert "not the configuration of a run of patnet train" in capsys.readouterr().err
    assert main(["evaluate", str(whole)]) == 2
    assert "holds a detector, not a classifier; patnet detect takes it" in capsys.readouterr().err
    assert main(["detect", "train", "--resume", "--out", str(tmp_path)]) == 2
    assert "holds no run (no config.yaml); patnet detect train makes one" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["s", "m", "l"])
def test_the_recipes_are_the_authors_schedule(variant):
    values = yaml.safe_load(RECIPES[f"coco_1x_patnet_{variant}"].read_text())
    recipe = DetectConfig(data="coco", out="run", **values)
    recipe.check()
    assert (recipe.epochs, recipe.drop_epochs, recipe.warmup_steps, recipe.warmup_factor) == (12, [8, 11], 500, 0.001)
    assert (recipe.global_batch_size, recipe.size, recipe.max_size, recipe.hflip) == (16, 800, 1333, 0.5)
    assert (recipe.opt, recipe.weight_decay, recipe.lr) == ("adamw", 1e-4, 2e-4 if variant == "s" else 1e-4)


@given(st.integers(1, 20), st.integers(0, 30), st.sampled_from(["steps", "cosine"]))
def test_the_rate_rises_then_falls(epochs, warmup, schedule):
    steps = 40 * epochs
    drops = [round(40 * epochs * share) for share in (8 / 12, 11 / 12)]
    rates = [
        rate_at(s, steps, schedule=schedule, warmup=warmup, warmup_factor=0.001, drops=drops) for s in range(steps)
    ]
    assert max(rates) <= 1
    assert rates[0] == pytest.approx(0.001 if warmup else 1)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[-1] == pytest.approx(0.01) if schedule == "steps" and drops[1] > warmup else rates[-1] < 0.1


@given(st.sampled_from([16, 64]), st.integers(1, 5), st.sampled_from(["mask_rcnn", "faster_rcnn", "retinanet"]))
def test_saved_detectors_come_back(tmp_path_factory, width, classes, detector):
    directory = tmp_path_factory.mktemp("saved")
    model = build(
        detector,
        backbone="patnet_t0",
        num_classes=classes,
        width=width,
        min_size=64,
        max_size=64,
        backbone_args={"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": 2, "in_chans": 1},
    ).eval()
    names, ids = [f"class {i}" for i in range(classes)], [3 * i + 1 for i in range(classes)]
    loaded = load_detector(save_detector(model, directory, class_names=names, category_ids=ids))
    assert (loaded.class_names, loaded.category_ids, loaded.in_chans) == (names, ids, 1)
    picture = [torch.rand(1, 48, 64)]
    with torch.inference_mode():
        for key, value in model(picture)[0].items():
            assert torch.equal(loaded.model(picture)[0][key], value)


def test_a_run_goes_on_without_what_it_started_from(panels, tmp_path, monkeypatch, whole):
    started = shutil.copytree(whole / "best", tmp_path / "started")
    options = {"start": str(started), "backbone_args": {}, "in_chans": None, "val_fraction": 0.0}
    monkeypatch.setattr(DetectorModule, "on_train_epoch_end", lambda self: os.kill(os.getpid(), 15), raising=False)
    with pytest.raises(Interrupted):
        fit(config(panels, tmp_path / "run", **options), console=QUIET)
    monkeypatch.undo()
    shutil.rmtree(started)
    assert fit(config(panels, tmp_path / "run", **options), resume=True, console=QUIET).epochs == 2


def test_damaged_checkpoints_are_named(whole, tmp_path):
    with pytest.raises(InputError, match="no such run or checkpoint"):
        load_detector(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no detector"):
        load_detector(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((whole / "last" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((whole / "last" / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="is missing, damaged or cut short"):
        load_detector(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["build"]["width"] = 24
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((whole / "last" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="do not fit the detector"):
        load_detector(tmp_path)
