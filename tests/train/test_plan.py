"""Plans count as the run itself does, and a batch that is chosen fits and divides what it must."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.train import TrainConfig, batch_size, fit
from patnet.train.batch_size import available_memory, candidates, settle_batch_size
from patnet.train.batching import work_out
from patnet.train.fit import too_few_steps
from patnet.train.plan import SyntheticPictures, plan

QUIET = Console(quiet=True)
TINY = {
    "model_args": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32},
    "size": 32,
    "batch_size": 4,
    "workers": 0,
    "epochs": 2,
    "warmup_epochs": 0.5,
    "accelerator": "cpu",
}


def config(**options):
    return TrainConfig(**{"data": "", "out": "", **TINY, **options})


def test_a_plan_counts_as_the_run_does_and_leaves_nothing(photos, tmp_path):
    data = photos(a=10, b=11)
    options = {"data": str(data), "out": str(tmp_path / "run"), "val_fraction": 0.2, "global_batch_size": 8}
    planned = plan(config(**options), seconds=0.2, console=QUIET)
    assert not (tmp_path / "run").exists()
    assert (planned["training_pictures"], planned["validation_pictures"], planned["classes"]) == (17, 4, 2)
    assert (planned["steps_per_epoch"], planned["steps"], planned["pictures"]) == (2, 4, 32)
    assert (planned["global_batch"], planned["limit"] in ("loading", "computing")) == (8, True)
    assert planned["memory"] > 2**20
    (phase,) = planned["phases"]
    assert min(phase[name] for name in ("loading", "computing", "together")) > 0
    one, eight, _ = planned["estimates"]
    assert one["seconds_as_measured"] == pytest.approx(2 * 21 / phase["together"])
    assert eight["seconds_computing"] == pytest.approx(one["seconds_computing"] / 8)
    assert "8 devices have" not in eight["sharing"]
    fit(config(**options), console=QUIET)  # the same options train


def test_smaller_pictures_have_a_rate_of_their_own(photos):
    planned = plan(config(data=str(photos(a=6, b=6)), size=64, early_size=32, early_epochs=1), seconds=0.4)
    assert [(phase["size"], phase["epochs"]) for phase in planned["phases"]] == [(32, 1), (64, 1)]
    seconds = sum(12 * phase["epochs"] / phase["computing"] for phase in planned["phases"])
    assert planned["estimates"][0]["seconds_computing"] == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_a_data_set_that_is_not_there_is_planned_for(capfd, balance):
    args = [f"--model_args.{name}={value}" for name, value in TINY["model_args"].items()]
    options = ["--size=32", "--workers=1", "--accelerator=cpu", "--num_classes=7", "--plan_seconds=0.2"]
    options.append(f"--balance={balance}")
    assert main(["train", "--plan", "--plan_pictures=1000", *options, *args, "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert (planned["data"], planned["training_pictures"], planned["classes"]) == (None, 1000, 7)
    assert planned["worker_memory"] > 2**20
    assert planned["warnings"] == []


def test_few_steps_are_warned_of_unless_weights_are_trained():
    assert too_few_steps(200, None) == []
    assert too_few_steps(199, "runs/first") == []
    (said,) = too_few_steps(199, None)
    assert said.startswith("199 steps in all are few")


def test_too_many_workers_are_warned_of(monkeypatch, capfd):
    monkeypatch.setattr("patnet.train.plan.available_memory", lambda: 2**20)
    args = [f"--model_args.{name}={value}" for name, value in TINY["model_args"].items()]
    options = ["--size=32", "--workers=1", "--accelerator=cpu", "--num_classes=3", "--plan_seconds=0.2"]
    assert main(["train", "--plan", "--plan_pictures=64", *options, *args]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "synthetic pictures" in out
    assert "Assumed: Linear scaling" in out
    assert "Warning: --workers 1: take" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--plan"], "--plan_pictures"),
        (["--plan", "--plan_pictures=0"], "must be above 0"),
        (["--plan", "--plan_pictures=9", "--plan_seconds=0"], "must be above 0"),
        (["--plan", "--plan_pictures=9", "--model=patnet_t9"], "no such model"),
        (["--plan", "--data=nowhere"], "nowhere"),
        (["--data=photos", "--out=run", "--json"], "are for --plan"),
        (["--data=photos"], "give --out too"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(capfd, argv, said):
    assert main(["train", *argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@given(share=st.integers(1, 600), devices=st.integers(1, 8))
def test_every_candidate_divides_the_global_batch(share, devices):
    for size in candidates(share, 10**6):
        batching = work_out(config(batch_size=size, global_batch_size=share * devices), devices)
        assert (batching.per_device, batching.whole) == (size, share * devices)


@pytest.mark.parametrize(("pictures", "most"), [(1, 2), (100, 64), (10**6, 1024)])
def test_without_a_global_batch_powers_of_two_up_to_the_data(pictures, most):
    sizes = candidates(None, pictures)
    assert sizes[-1] == most
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize(
    ("free", "whole", "chosen"), [(1250, 96, 24), (1250, None, 32), (10**6, 96, 48), (10**6, None, 512)]
)
def test_the_largest_that_fits_is_chosen(monkeypatch, capsys, free, whole, chosen):
    """A step of n pictures takes 200 + 20 n: 80 % of 1250 hold 40 of them."""

    class Measured:
        returncode, stdout = 0, "[280, 520]\n"

    monkeypatch.setattr(batch_size.subprocess, "run", lambda *_, **__: Measured)
    monkeypatch.setattr(batch_size, "available_memory", lambda: free)
    asked = config(batch_size="auto", global_batch_size=whole)
    devices = 2 if whole else 1
    asked.num_nodes = devices
    assert settle_batch_size(asked, devices, 2, 1000, Console(width=400)).batch_size == chosen
    assert f"Batch size {chosen}" in capsys.readouterr().out
    monkeypatch.setattr(batch_size, "available_memory", lambda: 260)
    with pytest.raises(InputError, match="not even 2 pictures"):
        settle_batch_size(asked, devices, 2, 1000, QUIET)


def test_other_processes_take_the_number_from_the_run(tmp_path, monkeypatch):
    from patnet.train.run import RunFolder

    RunFolder(tmp_path / "run").start(config(out=str(tmp_path / "run"), batch_size=6))
    monkeypatch.setattr(batch_size.rank_zero_only, "rank", 1)
    asked = config(out=str(tmp_path / "run"), batch_size="auto")
    assert settle_batch_size(asked, 2, 2, 100, QUIET).batch_size == 6


@pytest.mark.slow
def test_a_run_keeps_the_number_that_was_found(photos, tmp_path, capsys):
    asked = config(data=str(photos(a=10, b=10)), out=str(tmp_path / "run"), batch_size="auto", epochs=1)
    fit(asked, console=Console(width=400))
    assert "Batch size 16: about" in capsys.readouterr().out
    assert TrainConfig.read(tmp_path / "run" / "config.yaml").batch_size == 16
    wrong = config(data=asked.data, out=str(tmp_path / "other"), batch_size="auto", model_args={"nothing_such": 1})
    with pytest.raises(InputError, match=r"nothing_such.*give a number"):
        fit(wrong, console=QUIET)
    assert not (tmp_path / "other").exists()


def test_memory_is_limited_by_the_machine():
    import psutil

    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_synthetic_pictures_are_pictures():
    grey = SyntheticPictures(100, 7, "L")
    picture, label = grey[99]
    assert (picture.size, picture.mode, label) == ((500, 375), "L", 1)
