import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

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


def refused(capfd, *argv):
    """The error message of `patnet` for bad input: one line, nothing on standard output."""
    code = main(list(map(str, argv)))
    _, err = capfd.readouterr()
    assert code == 2, err
    assert err.startswith("patnet: "), err
    assert err.count("\n") == 1, err
    return err


def test_train_resume_evaluate_predict(here, capfd, monkeypatch):
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
    capfd.readouterr()

    assert main(["evaluate", "run", "--workers", "0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["split"] == "val"
    assert main(["evaluate", "run", "--workers=0"]) == 0
    assert "Top-1 accuracy" in capfd.readouterr().out

    assert main(["predict", "run", "images/a", "images/*/00.png", "--json"]) == 0
    predictions = json.loads(capfd.readouterr().out)
    assert len(predictions) == 7
    assert main(["predict", "run", "images/a/00.png", "--csv", "--top", "2", "--grid", "grid.png"]) == 0
    row = next(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert row["path"] == "images/a/00.png"
    assert row["label1"] == predictions[0]["label"]
    assert Path("grid.png").is_file()
    assert main(["predict", "run", "images/a/00.png"]) == 0
    assert predictions[0]["label"] in capfd.readouterr().out


def test_parquet_files_and_their_counts(checkpoint_dir, here, capfd):
    Path("images/a/05.png").write_bytes(b"")
    command = ["predict", str(checkpoint_dir), "images", "--accelerator", "cpu", "--parquet", "out"]
    assert main(command) == 2
    printed = capfd.readouterr()
    assert printed.out == "Predictions for 12 images in out\n"
    assert "1 of 12 images cannot be read" in printed.err
    assert json.loads(Path("out/_manifest.json").read_text())["count"] == 12
    for extra, message in {"--json": "leave out --json", "--data elpv": "either", "--shard-size 0": "above 0"}.items():
        assert message in refused(capfd, *command, *extra.split())
    assert "need --parquet" in refused(capfd, "predict", checkpoint_dir, "--data", "images")
    assert main(["predict", str(checkpoint_dir), "--data", "images", "--split", "val", "--parquet", "val"]) == 0
    assert capfd.readouterr().out == "Predictions for 1 images in val\n"


def test_models_are_listed(capfd, monkeypatch):
    monkeypatch.setattr("patnet.cli.models.VARIANTS", ("t0", "t2"))
    assert main(["models", "--all", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capfd.readouterr().out)}
    assert len(rows) == 4
    assert rows["patnet_t2"]["parameters"] == 12651072
    assert round(rows["patnet_t2"]["gmacs"], 3) == 1.078
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
        ("train --data images --out run --aa nothing", "--aa nothing"),
        ("train --data images --out run --accelerator abacus", "--accelerator"),
        ("train --data absent/folder --out run", "no such folder"),
        ("train --data images --out images", "is not empty"),
        ("train --data images --out images/a/00.png/run", "cannot be written"),
        ("train --data images --out run --weights absent.pth", "absent.pth: no such checkpoint"),
        ("train --resume --out run", "holds no run"),
        ("evaluate run", "no such checkpoint"),
        ("evaluate images", "no model.safetensors"),
        ("predict run images", "no such checkpoint"),
        ("predict images", "IMAGES"),
    ],
)
def test_bad_input_has_one_line_and_leaves_nothing(here, capfd, argv, message):
    before = sorted(here.rglob("*"))
    assert message in refused(capfd, *argv.split())
    assert sorted(here.rglob("*")) == before


def test_unreadable_images_are_reported_after_the_others_are_predicted(checkpoint_dir, here, capfd):
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
    assert "absent.png: no such image" in refused(capfd, "predict", checkpoint_dir, "absent.png")
    assert "no file matches" in refused(capfd, "predict", checkpoint_dir, "none*.png")


def test_checkpoints_that_cannot_be_used(run_dir, here, capfd):
    image = "images/a/00.png"
    weights = (run_dir / "best" / "model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "damaged or cut short" in refused(capfd, "predict", "cut.safetensors", image)

    class Hostile:
        def __reduce__(self):
            return Path.touch, (here / "ran",)

    Path("hostile.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"weights": Hostile()}, "zipped.pth")
    for name in ("hostile.pth", "zipped.pth"):
        assert "would run code" in refused(capfd, "predict", name, image)
    assert not Path("ran").exists()
    torch.save({"layer.weight": torch.zeros(2)}, "other.pth")
    assert "other.pth: " in refused(capfd, "predict", "other.pth", image)
    options = ["--data", "images", "--out", "new", "--weights", run_dir]
    assert "architecture" in refused(capfd, "train", *options, *OPTIONS, "--model-kwargs.embed_dim", "16")
    assert not Path("new").exists()


def test_recipes_are_files_or_names_and_other_options_win(here, capfd):
    Path("mine.yaml").write_text("model: patnet_t1\nlr: 0.5\nimg_size: 32\n")
    with pytest.raises(SystemExit) as left:
        main(["train", "--recipe", "mine.yaml", "--lr", "0.25", "--data", "images", "--out", "run", "--print-config"])
    assert left.value.code == 0
    printed = capfd.readouterr().out
    assert "model: patnet_t1" in printed
    assert "lr: 0.25" in printed


def test_it_runs_as_a_module():
    printed = subprocess.run([sys.executable, "-m", "patnet", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("patnet 0.")
