import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patnet.cli import main
from patnet.train.classifier import Classifier

TINY = (
    *("--size", "32", "--epochs", "1", "--warmup_epochs", "0", "--batch_size", "6", "--workers", "0"),
    *("--accelerator", "cpu", "--val_fraction", "0.25"),
)


@pytest.fixture
def here(photos, tmp_path, monkeypatch):
    """A working directory with the data set `photos`."""
    photos(a=6, b=6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, `run` beside the data set `photos`, for tests that change neither."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("trained")
    for name in "ab":
        (root / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 255, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{i}.png")
    assert main(["train", "--data", str(root / "photos"), "--out", str(root / "run"), *TINY]) == 0
    return root


def refused(capfd, *argv):
    """What `patnet` says of bad input: one sentence, nothing on standard output."""
    code = main(list(map(str, argv)))
    _, err = capfd.readouterr()
    assert code == 2, err
    assert "Traceback" not in err
    assert err.startswith("patnet: "), err
    assert err.count("\n") == 1, err
    return err


def test_train_resume_evaluate_predict(here, capfd, monkeypatch):
    step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["train", "--data", "photos", "--out", "run", *TINY]) == 130
    assert "patnet train --resume --out run" in capfd.readouterr().out
    monkeypatch.setattr(Classifier, "training_step", step)
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert "run/curves.png" in capfd.readouterr().out

    assert main(["evaluate", "run", "--workers", "0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["split"] == "val"
    assert main(["evaluate", "run", "--workers=0"]) == 0
    assert "Top-1 accuracy" in capfd.readouterr().out

    assert main(["predict", "run", "photos/a", "photos/*/00.png", "--json"]) == 0
    answers = json.loads(capfd.readouterr().out)
    assert len(answers) == 7
    assert main(["predict", "run", "photos/a/00.png", "--csv", "--top", "2"]) == 0
    row = next(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert row["path"] == "photos/a/00.png"
    assert row["label1"] == answers[0]["label"]
    assert main(["predict", "run", "photos/a/00.png", "--sheet", "sheet.png"]) == 0
    assert (here / "sheet.png").is_file()


def test_a_run_can_be_repeated_from_its_configuration(run, tmp_path):
    options = ["--config", str(run / "run" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(["train", *options]) == 0
    weights = [(root / "best" / "model.safetensors").read_bytes() for root in (run / "run", tmp_path / "again")]
    assert weights[0] == weights[1]


def test_models_are_listed(capfd):
    assert main(["models", "--all", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capfd.readouterr().out)}
    assert len(rows) == 12
    assert rows["patnet_t2"]["parameters"] == 12651072
    assert round(rows["patnet_t2"]["gmacs"], 3) == 1.078
    assert rows["fasternet_t2"]["top1"] == 78.9


@pytest.mark.parametrize("command", [[], ["models"], ["train"], ["evaluate"], ["predict"]])
def test_help_teaches_by_example(command, capfd):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    assert capfd.readouterr().out.count("  patnet ") >= 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "give a command"),
        ("trian", "did you mean 'train'"),
        ("train --out run", "data"),
        ("train --data photos --out run --modle patnet_t1", "did you mean '--model'"),
        ("train --data photos --out run --model patnet_t9", "did you mean 'patnet_t"),
        ("train --data elpw --out run", "did you mean 'elpv'"),
        ("train --data photos --out run --epochs many", "epochs"),
        ("train --data photos --out run --size 20", "at least 32"),
        ("train --data photos --out run --in-chans 2", "grey (1) or colour (3)"),
        ("train --data photos --out run --opt nothing", "--opt nothing"),
        ("train --data photos --out run --model_args.partial_ratio 0.001", "leaves none of 32 channels"),
        ("train --data photos --out run --auto-augment nothing", "--auto_augment nothing"),
        ("train --data photos --out run --accelerator abacus", "--accelerator"),
        ("train --data absent/folder --out run", "no such folder"),
        ("train --data photos --out photos", "is not empty"),
        ("train --data photos --out photos/a/00.png/run", "cannot be written"),
        ("train --data photos --out run --weights absent.pth", "absent.pth: no such checkpoint"),
        ("train --data photos --out run --config absent.yaml", "absent.yaml"),
        ("train --resume --out run", "holds no run"),
        ("train --resume", "give --out"),
        ("evaluate", "RUN"),
        ("evaluate run", "no such checkpoint"),
        ("evaluate photos", "no model.safetensors"),
        ("predict run photos", "no such checkpoint"),
        ("predict photos", "IMAGES"),
        ("predict run absent.png", "absent.png: no such picture"),
        ("predict run 'none*.png'", "no file matches"),
        ("models --josn", "did you mean '--json'"),
        ("models everything", "everything"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(here, capfd, argv, message):
    before = sorted(here.rglob("*"))
    said = refused(capfd, *[word.strip("'") for word in argv.split()])
    assert message in said
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "sets 'epoch', which is no option (did you mean 'epochs'?)"),
        ("epochs: many", "--epochs many: must be a whole number"),
        ("epochs: 2.5", "--epochs 2.5: must be a whole number"),
        ("lr: fast", "--lr fast: must be a number"),
        ("strict: 3", "--strict 3: must be true or false"),
        ("balance: maybe", "--balance maybe: must be one of none, weights, sampling"),
        ("batch_size: many", "--batch_size many: must be a whole number or auto"),
        ("clip_grad: much", "--clip_grad much: must be a number or null"),
        ("model_args: [1]", "--model_args [1]: must be a mapping of names to values"),
        ("epochs: [", "not a YAML file of options"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(here, capfd, text, message):
    (here / "options.yaml").write_text(text)
    assert message in refused(capfd, "train", "--data", "photos", "--out", "run", "--config", "options.yaml")
    assert not (here / "run").exists()


def test_another_run_in_the_folder_is_kept(run, capfd):
    before = (run / "run" / "metrics.csv").read_bytes()
    said = refused(capfd, "train", "--data", run / "photos", "--out", run / "run", *TINY)
    assert "holds another run" in said
    said = refused(capfd, "train", "--resume", "--out", run / "run", "--lr", "0.5")
    assert "--lr is 0.001 there and 0.5 here" in said
    assert (run / "run" / "metrics.csv").read_bytes() == before


def test_unreadable_pictures_are_named_after_the_others_are_answered(run, tmp_path, capfd):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    good = run / "photos" / "a" / "0.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "good.png").write_bytes(good.read_bytes())
    assert main(["predict", str(run / "run"), str(tmp_path), "--json"]) == 2
    out, err = capfd.readouterr()
    assert [Path(answer["path"]).name for answer in json.loads(out)] == ["good.png"]
    assert err.count("patnet: ") == err.count("\n") == 3
    assert "empty.png: the file is empty" in err


def test_checkpoints_that_cannot_be_used(run, tmp_path, capfd):
    picture = run / "photos" / "a" / "0.png"
    whole = (run / "run" / "best" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in refused(capfd, "predict", tmp_path / "cut.safetensors", picture)

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"weights": Hostile()}, tmp_path / "zipped.pth")
    for name in ("hostile.pth", "zipped.pth"):
        assert "would run code" in refused(capfd, "predict", tmp_path / name, picture)
    assert not (tmp_path / "ran").exists()
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    assert "not a PATNet's" in refused(capfd, "predict", tmp_path / "other.pth", picture)
    said = refused(capfd, "evaluate", run / "run", "--data", "elpv", "--out", tmp_path / "x")
    assert "its classes (functional, defective) are not those" in said
    options = ["--data", run / "photos", "--out", tmp_path / "new", "--model", "patnet_t1", "--weights", run / "run"]
    assert "another architecture" in refused(capfd, "train", *options, *TINY)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_picture_stops_training_with_its_name(here, capfd, workers):
    (here / "photos" / "a" / "03.png").write_bytes(b"")
    options = ["--data", "photos", "--out", "run", *TINY, "--batch_size", "3", "--workers", workers]
    said = refused(capfd, "train", *options)
    assert "03.png: the file is empty" in said


def test_a_damaged_resumable_checkpoint_is_refused(run, tmp_path, capfd):
    import shutil

    shutil.copytree(run / "run", tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:5000])
    assert "last.ckpt: the checkpoint is damaged" in refused(capfd, "train", "--resume", "--out", tmp_path / "run")


def test_it_runs_as_a_module():
    said = subprocess.run([sys.executable, "-m", "patnet", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("patnet 0.")


def test_recipes_by_name_and_file(here, capfd):
    Path("mine.yaml").write_text("model: patnet_t1\nlr: 0.5\nsize: 32\n")
    given = ("--data", "photos", "--out", "run", "--print_config")
    assert "did you mean 'patnet_t2'" in refused(capfd, "train", "--recipe", "patnet_t9", "--data", "photos")
    with pytest.raises(SystemExit):
        main(["train", "--recipe", "mine.yaml", "--lr", "0.25", *given])
    shown = capfd.readouterr().out
    assert "model: patnet_t1" in shown
    assert "lr: 0.25" in shown
    Path("mine.yaml").write_text("lrr: 1\n")
    assert "did you mean 'lr'" in refused(capfd, "train", "--recipe", "mine.yaml", "--data", "photos", "--out", "run")
    Path("mine.yaml").write_text("lr: high\n")
    assert "lr" in refused(capfd, "train", "--recipe", "mine.yaml", "--data", "photos", "--out", "run")
    assert not Path("run").exists()


def test_a_signal_asks_to_be_resumed(here, monkeypatch):
    step = Classifier.training_step

    def signalled(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", signalled)
    assert main(["train", "--data", "photos", "--out", "run", *TINY]) == 75
    monkeypatch.setattr(Classifier, "training_step", step)
    assert main(["train", "--resume", "--out", "run"]) == 0
