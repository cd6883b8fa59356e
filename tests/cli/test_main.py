import csv
import io
import json
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from PIL import Image

from patnet.cli import main
from patnet.train.classifier import Classifier

OPTIONS = (
    *("--img-size", "32", "--epochs", "1", "--batch-size", "6", "--workers", "0"),
    *("--accelerator", "cpu", "--val-fraction", "0.25"),
    *(
        word
        for name, value in TINY.items()
        for word in (f"--model-kwargs.{name}", str(list(value) if isinstance(value, tuple) else value))
    ),
)


@pytest.fixture
def here(images_dir, tmp_path, monkeypatch):
    """A working directory with the data set `images`."""
    images_dir(a=6, b=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_resume_evaluate_predict(here, capfd, json_of, monkeypatch):
    step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["train", "--data", "images", "--out", "run", *OPTIONS]) == 130
    assert "patnet train --resume --out run" in capfd.readouterr().out
    monkeypatch.setattr(Classifier, "training_step", step)
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert "run/curves.png" in capfd.readouterr().out
    assert main(["train", "--config", "run/config.yaml", "--out", "again"]) == 0
    weights = [Path(run, "best", "model.safetensors").read_bytes() for run in ("run", "again")]
    assert weights[0] == weights[1]

    assert json_of("evaluate", "run", "--workers", "0")["split"] == "val"
    assert main(["evaluate", "run", "--workers=0"]) == 0
    assert "Top-1 accuracy" in capfd.readouterr().out


def test_the_next_step_is_one_that_the_run_can_take(here, capfd):
    for split in ("train", "test"):
        shutil.copytree("images", here / "split" / split)
    (here / "flat").mkdir()
    for file in sorted(here.glob("images/*/*.png")):
        shutil.copy(file, here / "flat" / f"{file.parent.name}{file.name}")
    assert main(["train", "--data", "images", "--out", "teacher", *OPTIONS]) == 0
    assert "Next    patnet evaluate teacher\n" in capfd.readouterr().out
    assert main(["train", "--data", "split", "--out", "tested", *OPTIONS, "--val-fraction", "0"]) == 0
    assert "Next    patnet evaluate tested\n" in capfd.readouterr().out
    assert main(["train", "--data", "images", "--out", "run", *OPTIONS, "--val-fraction", "0"]) == 0
    assert "Next    patnet predict run IMAGES\n" in capfd.readouterr().out
    assert main(["train", "--data", "flat", "--out", "pupil", *OPTIONS, "--teacher", "teacher"]) == 0
    assert "Next    patnet predict pupil IMAGES\n" in capfd.readouterr().out


def test_predictions_are_printed_drawn_and_written(checkpoint_dir, here, capfd, json_of, refused):
    run = str(checkpoint_dir)
    found = json_of("predict", run, "images/a", "images/*/00.png")
    assert len(found) == 7
    assert main(["predict", run, "images/a", "images/*/00.png", "--csv", "--top", "2", "--grid", "grid.png"]) == 0
    for entry, row in zip(found, csv.DictReader(io.StringIO(capfd.readouterr().out)), strict=True):
        assert (entry["path"], entry["label"]) == (row["path"], row["label1"])
        for place, ranked in enumerate(entry["top"][:2], start=1):
            assert ranked["label"] == row[f"label{place}"]
            assert ranked["probability"] == pytest.approx(float(row[f"probability{place}"]), abs=1e-6)
    with Image.open("grid.png") as image:
        assert image.width > 800
    assert main(["predict", run, "images/a/00.png"]) == 0
    assert f"{100 * found[0]['probability']:.1f} %" in capfd.readouterr().out

    Path("images/a/05.png").write_bytes(b"")
    command = ["predict", run, "images", "--accelerator", "cpu", "--out", "out"]
    assert "1 of 12 images cannot be read, more than --max-unreadable 0.01 allows" in refused(*command)
    assert main([*command, "--max-unreadable", "0.1"]) == 0  # resumed: all is there
    printed = capfd.readouterr()
    assert printed.out == "Predictions for 12 images in out\n"
    assert "1 of 12 images cannot be read" in printed.err
    for extra, message in {"--json": "leave out --json", "--rows-per-file 0": "above 0", "--top 1": "--top 3"}.items():
        assert message in refused(*command, *extra.split())
    assert "need --out" in refused("predict", run, "images", "--engine", "ray")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--actors 2", "--actors: belongs to --engine ray"),
        ("--out out --actor-cpus 2", "--actor-cpus: belongs to --engine ray"),
        ("--out out --actor-gpus 1", "--actor-gpus: belongs to --engine ray"),
        ("--out out --actor-gb 1", "--actor-gb: belongs to --engine ray"),
        ("--rows-per-file 8", "--rows-per-file: belongs to --out"),
        ("--max-unreadable 0.1", "--max-unreadable: belongs to --out"),
        ("--out out --engine ray --workers 2", "--workers: belongs to --engine local"),
        ("--out out --engine ray --actor-gpus -1", "--actor-gpus -1: must be a number of at least 0"),
        ("--out out --engine ray --accelerator cuda", "--accelerator cuda: on Ray give --actor-gpus too"),
    ],
)
def test_options_that_change_no_prediction_are_refused(checkpoint_dir, here, refused, monkeypatch, options, message):
    monkeypatch.setattr("patnet.errors.find_spec", lambda name: name)  # as if Ray were installed
    assert message in refused("predict", checkpoint_dir, "images", *options.split())
    assert not Path("out").exists()


def test_models_are_listed(capfd, json_of, monkeypatch):
    monkeypatch.setattr("patnet.cli.models.VARIANTS", ("t2",))
    rows = {row["model"]: row for row in json_of("models", "--all")}
    assert len(rows) == 2
    assert (rows["patnet_t2"]["parameters"], round(rows["patnet_t2"]["gmacs"], 3)) == (12651072, 1.078)
    assert rows["fasternet_t2"]["top1"] == 78.9
    assert main(["models"]) == 0
    assert "patnet_t2       12,651,072    1.078    224x224" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("train --data images --out run --model patnet_t9", "did you mean 'patnet_t"),
        ("train --data elpw --out run", "did you mean 'elpv'"),
        ("train --data images --out run --in-chans 2", "--in-chans 2"),
        ("train --data images --out run --opt nothing", "--opt nothing"),
        ("train --data images --out run --model-kwargs.partial_ratio 0.001", "leaves none of 32 channels"),
        ("train --data absent/folder --out run", "no such folder"),
        ("train --data images --out images", "is not empty"),
        ("train --data images --out images/a/00.png/run", "cannot be written"),
        ("train --data images --out run --weights absent.pth", "absent.pth: no such checkpoint"),
        ("train --resume --out run", "holds no run"),
        ("evaluate run", "no such checkpoint"),
        ("predict images", "IMAGES"),
    ],
)
def test_bad_input_has_one_line_and_leaves_nothing(here, refused, argv, message):
    before = sorted(here.rglob("*"))
    assert message in refused(*argv.split())
    assert sorted(here.rglob("*")) == before


def test_unreadable_images_are_reported_after_the_others_are_predicted(checkpoint_dir, here, capfd, refused):
    good = Path("images/a/00.png")
    Path("mixed").mkdir()
    Path("mixed/empty.png").touch()
    Path("mixed/text.jpg").write_text("no image")
    Path("mixed/cut.png").write_bytes(good.read_bytes()[:200])
    shutil.copy(good, "mixed/good.png")
    assert main(["predict", str(checkpoint_dir), "mixed", "--json"]) == 2
    out, err = capfd.readouterr()
    assert [entry["path"] for entry in json.loads(out)] == ["mixed/good.png"]
    assert err.count("patnet: ") == err.count("\n") == 3
    assert "empty.png: the file is empty" in err
    assert "absent.png: no such image" in refused("predict", checkpoint_dir, "absent.png")
    assert "no file matches" in refused("predict", checkpoint_dir, "none*.png")


def test_checkpoints_that_cannot_be_used(run_dir, here, refused):
    image = "images/a/00.png"
    weights = (run_dir / "best" / "model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "damaged or cut short" in refused("predict", "cut.safetensors", image)

    class Hostile:
        def __reduce__(self):
            return Path.touch, (here / "ran",)

    Path("hostile.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"weights": Hostile()}, "zipped.pth")
    for name in ("hostile.pth", "zipped.pth"):
        assert "would run code" in refused("predict", name, image)
    assert not Path("ran").exists()
    torch.save({"layer.weight": torch.zeros(2)}, "other.pth")
    assert "other.pth: " in refused("predict", "other.pth", image)
    options = ["--data", "images", "--out", "new", "--weights", run_dir]
    assert "architecture" in refused("train", *options, *OPTIONS, "--model-kwargs.embed_dim", "16")
    assert not Path("new").exists()


def test_it_runs_as_a_module(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["patnet", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("patnet", run_name="__main__")
    assert not left.value.code
    assert capfd.readouterr().out.startswith("patnet 0.")
