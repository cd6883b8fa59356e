import json

import pytest
from PIL import Image

from patnet.cli import main
from patnet.files import sha256, write_text
from patnet.train import RunDirectory, TrainConfig


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished runs and a damaged one in `runs`."""
    monkeypatch.chdir(tmp_path)
    for name, lr in (("first", 1e-3), ("second", 3e-3)):
        run = RunDirectory(f"runs/{name}")
        run.create(TrainConfig(data="images", out=f"runs/{name}", epochs=2, lr=lr))
        run.metrics.write_text(
            "epoch,train_loss,val_loss,val_top1,seconds,images_per_s,best\n"
            f"1,2.0,1.9,0.5,10,80,True\n2,1.0,1.2,{0.5 + 10 * lr},10,80,True\n"
        )
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.yaml").write_text("data: [")
    weights = tmp_path / "runs" / "first" / "best" / "model.safetensors"
    write_text(weights, "weights")
    evaluated = {"top1": 0.4321, "weights_sha256": sha256(weights)}
    write_text(tmp_path / "runs" / "first" / "evaluation-test" / "metrics.json", json.dumps(evaluated))
    return tmp_path


def test_runs_are_listed(runs, capfd, json_of):
    assert main(["runs", "runs"]) == 0
    out = capfd.readouterr().out
    assert out.count("finished") == 2
    assert "51.0 %" in out
    assert "damaged: runs/broken/config.yaml: not the configuration of a run" in out
    broken, first, second = json_of("runs", "runs")
    assert (broken["state"], broken["epochs"]) == ("damaged", 0)
    assert (first["run"], first["state"], first["epochs"], first["of"]) == ("runs/first", "finished", 2, 2)
    assert (second["best_epoch"], second["best_top1"], second["seconds"]) == (2, 0.53, 20)


def test_runs_are_compared(runs, capfd, json_of):
    assert main(["runs", "compare", "runs/first", "runs/second"]) == 0
    out = capfd.readouterr().out
    assert "--lr" in out
    assert "--epochs" not in out
    assert "43.21 %" in out
    assert "53.00 %" in out
    assert "validation AP" not in out
    with Image.open("comparison.png") as image:
        assert image.width > 800
    found = json_of("runs", "compare", "runs/first", "runs/second", "--out", "new/curves.png")
    assert found["options"] == {"lr": [1e-3, 3e-3]}
    assert [run["test top-1"] for run in found["runs"]] == [0.4321, None]
    (runs / "runs" / "first" / "best" / "model.safetensors").write_text("others")  # trained further since
    assert json_of("runs", "compare", "runs/first", "runs/second")["runs"][0]["test top-1"] is None
    assert (runs / "new" / "curves.png").is_file()
    (runs / "runs" / "second").rename(runs / "runs" / "second[wide]")
    assert main(["runs", "compare", "runs/first", "runs/second[wide]"]) == 0
    assert "second[wide]" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["runs/first/evaluation-test"], "holds no run"),
        ([], "FOLDERS"),
        (["compare", "runs/first"], "two runs or more"),
        (["compare", "runs/first", "runs/../runs/first"], "each once"),
        (["compare", "runs/first", "runs/broken"], "runs/broken/config.yaml: not the configuration"),
        (["compare", "runs/first", "runs"], "runs: holds no run"),
        (["compare", "runs/first", "runs/second", "--out", "curves.txt"], "curves.txt"),
        (["compare", "runs/first", "runs/second", "--out", "runs/first/config.yaml/curves.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_listed_is_an_error_message(runs, refused, argv, message):
    assert message in refused("runs", *argv)
