"""Plans count as the run itself does."""

import json

import pytest
from train.running import OPTIONS, QUIET, config, run

from patnet.cli import main
from patnet.train.plan import SyntheticImages, plan

ARGV = [f"--model-kwargs.{name}={value}" for name, value in OPTIONS["model_kwargs"].items()]
ARGV += ["--img-size=32", "--workers=1", "--accelerator=cpu", "--plan-seconds=0.2"]


def test_a_plan_counts_as_the_run_does_and_writes_nothing(images_dir, tmp_path):
    options = {"val_fraction": 0.2, "global_batch_size": 8}
    data = images_dir(a=10, b=11)
    planned = plan(config(data, tmp_path / "run", **options), seconds=0.2, console=QUIET)
    assert not (tmp_path / "run").exists()
    assert (planned["training_images"], planned["validation_images"], planned["classes"]) == (17, 4, 2)
    assert (planned["steps_per_epoch"], planned["steps"], planned["images"]) == (2, 4, 32)
    assert (planned["global_batch_size"], planned["limit"] in ("loading", "computing")) == (8, True)
    assert planned["memory"] > 2**20
    (phase,) = planned["phases"]
    assert min(phase[name] for name in ("loading", "computing", "together")) > 0
    one, eight, _ = planned["estimates"]
    assert one["seconds_as_measured"] == pytest.approx(2 * 21 / phase["together"])
    assert eight["seconds_computing"] == pytest.approx(one["seconds_computing"] / 8)
    run(data, tmp_path / "run", **options)  # the same options train


def test_each_image_size_has_a_rate(images_dir):
    given = config(images_dir(a=6, b=6), "", img_size=64, progressive_size=32, progressive_epochs=1)
    planned = plan(given, seconds=0.4, console=QUIET)
    assert [(phase["img_size"], phase["epochs"]) for phase in planned["phases"]] == [(32, 1), (64, 1)]
    seconds = sum(12 * phase["epochs"] / phase["computing"] for phase in planned["phases"])
    assert planned["estimates"][0]["seconds_computing"] == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_synthetic_images_replace_a_data_set(capfd, balance):
    argv = ["train", "--plan", "--plan-images=1000", "--num-classes=7", f"--balance={balance}", "--json", *ARGV]
    assert main(argv) == 0
    planned = json.loads(capfd.readouterr().out)
    assert (planned["data"], planned["training_images"], planned["classes"]) == (None, 1000, 7)
    assert planned["worker_memory"] > 2**20
    assert planned["warnings"] == []
    image, label = SyntheticImages(100, 7, "L")[99]
    assert (image.size, image.mode, label) == ((500, 375), "L", 1)


def test_a_plan_is_printed_with_its_warnings(monkeypatch, capfd):
    monkeypatch.setattr("patnet.train.data.available_memory", lambda: 2**20)
    assert main(["train", "--plan", "--plan-images=64", "--num-classes=3", "--epochs=2", *ARGV]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "synthetic images" in out
    assert "Assumption: linear scaling" in out
    assert "Warning: --workers 1: " in out
    assert "Warning: 2 steps are few" in out


TRAIN = "--data=images", "--out=run"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plan"], "--plan-images"),
        (["--plan", "--plan-images=0"], "--plan-images 0: must be an integer above 0"),
        (["--plan", "--find-lr", *TRAIN], "--plan and --find-lr: choose one"),
        (["--plan-seconds=9", *TRAIN], "--plan-seconds: belongs to --plan"),
        (["--distill-tau=2", *TRAIN], "--distill-tau: belongs to --teacher; give that too"),
        (["--mixup-prob=0.5", *TRAIN], "--mixup-prob: belongs to --mixup or --cutmix"),
        (["--plan", "--plan-images=9", "--plan-seconds=0"], "--plan-seconds 0: must be a number above 0"),
        (["--plan", "--plan-images=9", "--model=patnet_t9"], "no such model"),
        (["--plan", "--data=nowhere"], "nowhere"),
        ([*TRAIN, "--json"], "--json: belongs to --plan"),
        (["--data=images"], "give --out too"),
        ([*TRAIN, "--epochs=5", "--warmup-epochs=5"], "--warmup-epochs 5.0: must be less than"),
    ],
)
def test_what_cannot_be_planned_or_trained_is_one_line(capfd, argv, message):
    assert main(["train", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
