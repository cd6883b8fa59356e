"""An experiment from end to end: interrupted, taken up again, shared, and refused where it does not fit."""

import json
import math
import multiprocessing
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from patnet import InputError
from patnet.benchmark import timing
from patnet.benchmark.timing import Turns
from patnet.cli import main
from patnet.experiments import CostOptions, ExperimentConfig, cost, run_experiment
from patnet.experiments.analyses import analyse_position
from patnet.experiments.cost import match_widths
from patnet.experiments.folder import ExperimentFolder, claimed
from patnet.experiments.settings import Variant, create
from patnet.train import Interrupted
from patnet.train.classifier import Classifier

QUIET = Console(quiet=True)
COSTS = CostOptions(sizes=(32,), batch=2, seconds=0.01)
TINY_NETWORK = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": 1, "feature_dim": 16}
TINY = {
    "size": 32,
    "in_chans": 1,
    "epochs": 1,
    "warmup_epochs": 0,
    "batch_size": 8,
    "workers": 0,
    "seeds": 2,
    "accelerator": "cpu",
    "model_args": TINY_NETWORK,
    "ema_decay": None,
    "lr": 1e-3,
}
ONLY = ["1-8", "1-4"]


@pytest.fixture(scope="module", autouse=True)
def short_turns():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN_SECONDS", {"cpu": 0.001})
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for folder, count in {"train/a": 8, "train/b": 8, "test/a": 4, "test/b": 4}.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 99, (36, 40), dtype=np.uint8)
            Image.fromarray(pixels + (100 if folder[-1] == "b" else 0)).save(root / folder / f"{i}.png")
    return root


def config(photos, out, **options):
    return ExperimentConfig.from_options(
        {"experiment": "ratio", "data": str(photos), "out": str(out), **TINY, **options}
    )


def trainings(out):
    """How often each run was trained, or gone on with: each leaves a file of TensorBoard's."""
    return {
        f"{run.parent.name} {run.name}": len(list(run.glob("tensorboard/events*")))
        for run in Path(out).glob("runs/*/*/")
    }


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    """An experiment that was interrupted in its second run, and what was there then."""
    out = tmp_path_factory.mktemp("experiment") / "ratio"
    given = config(photos, out)
    step, count = Classifier.training_step, [0]

    def interrupted(self, *args):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run_experiment(given, COSTS, only=ONLY, console=QUIET)
    early = json.loads((out / "results.json").read_text())
    costs = (out / "costs.json").read_bytes()
    said = Console(record=True, quiet=False, width=120, file=(out / ".said").open("w"))
    results = run_experiment(given, COSTS, only=ONLY, console=said, command="patnet experiment ratio")
    assert (out / "costs.json").read_bytes() == costs  # measured once
    return out, early, results, said.export_text()


def test_an_interrupted_experiment_goes_on(done):
    out, early, results, said = done
    assert [r["configuration"] for r in early["runs"] if r["top1"] is not None] == ["1-8"]
    assert trainings(out) == {"1-8 seed-0": 1, "1-4 seed-0": 2, "1-8 seed-1": 1, "1-4 seed-1": 1}
    assert "run 2 of 4: 1-4, seed 0, about " in said
    finished = [(r["configuration"], r["seed"]) for r in results["runs"] if r["state"] == "finished"]
    assert finished == [("1-8", 0), ("1-8", 1), ("1-4", 0), ("1-4", 1)]
    assert not results["complete"]  # two configurations were not asked for
    assert results["pictures"] == 8
    assert not list(out.glob("runs/*/*/checkpoints"))


def test_the_numbers_are_those_of_the_runs(done):
    out, _, results, _ = done
    tested = {
        (r["configuration"], r["seed"]): json.loads(
            (out / r["folder"] / "evaluation-test" / "metrics.json").read_text()
        )
        for r in results["runs"]
        if r["state"] == "finished"
    }
    pairs = [tested["1-8", seed]["top1"] - tested["1-4", seed]["top1"] for seed in (0, 1)]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    (row,) = results["differences"]
    assert (row["configuration"], row["n"]) == ("1-8", 2)
    assert row["pairs"] == pytest.approx(pairs, abs=1e-5)
    assert row["mean"] == pytest.approx(np.mean(pairs), abs=1e-5)
    text = (out / "report.md").read_text()
    assert "# Experiment: ratio" in text
    assert "Incomplete: 4 of 8 runs" in text
    with Image.open(out / "report.png") as picture:
        assert picture.width > 1000
    options = yaml.safe_load((out / "runs" / "1-8" / "seed-1" / "config.yaml").read_text())
    assert (options["seed"], options["model_args"]["partial_ratio"]) == (1, 0.125)


def test_trained_networks_are_analysed(done, photos, tmp_path):
    finding, lines = analyse_position(tmp_path, {name: [done[0] / "runs" / name / "seed-0"] for name in ONLY})
    assert "Of 1-8, seed-0." in lines
    assert finding.startswith("Between two offsets")
    assert all(f"({name})" in finding for name in ONLY)
    assert {f"position-{name}.json" for name in ONLY} < {file.name for file in (tmp_path / "analysis").iterdir()}
    assert "![position-1-4, maps](analysis/position-1-4-maps.png)" in lines
    # Eight pictures are too few for all channels, and that is said in the report.
    run_experiment(config(photos, tmp_path / "x", experiment="redundancy", seeds=1), COSTS, console=QUIET)
    report = (tmp_path / "x" / "report.md").read_text()
    assert "There is none: 8 pictures give" in report
    assert "patnet reaches" in report
    assert not (tmp_path / "x" / "report.png").exists()  # one configuration has nothing to be drawn beside
    assert "report.png" not in report


def test_nothing_is_done_twice_and_seeds_may_be_added(done, photos):
    out, _, _, _ = done
    before = trainings(out)
    results = run_experiment(config(photos, out, seeds=1), COSTS, only=ONLY, console=QUIET)
    assert results["seeds"] == [0, 1]
    assert results["differences"]
    again = run_experiment(config(photos, out), COSTS, cost_only=True, console=QUIET)
    assert again["differences"] == results["differences"]  # and stay in the report
    assert trainings(out) == before


def test_other_settings_are_refused_by_name(done, photos):
    out, _, _, _ = done
    with pytest.raises(InputError, match=r"--lr is 0\.001 there and 0.1 here"):
        run_experiment(config(photos, out, lr=0.1), COSTS, console=QUIET)
    with pytest.raises(InputError, match="holds the experiment ratio, not position"):
        run_experiment(config(photos, out, experiment="position"), COSTS, console=QUIET)
    with pytest.raises(InputError, match="holds no experiment"):
        run_experiment(config(photos, photos), COSTS, console=QUIET)


def test_options_may_change_until_a_run_has_begun(photos, tmp_path):
    results = run_experiment(config(photos, tmp_path / "x"), COSTS, cost_only=True, console=QUIET)
    assert results["runs"] == []
    assert "eager" in (tmp_path / "x" / "report.md").read_text()
    ExperimentFolder(tmp_path / "x").start(config(photos, tmp_path / "x", lr=0.1))
    assert ExperimentConfig.read(tmp_path / "x" / "experiment.yaml").lr == 0.1
    assert not (tmp_path / "x" / "costs.json").exists()


def test_pictures_for_a_test_are_needed(photos, tmp_path):
    given = config(photos / "train", tmp_path / "x", val_fraction=0.0)
    with pytest.raises(InputError, match="--val_fraction"):
        run_experiment(given, COSTS, console=QUIET)
    assert import_module("patnet.experiments.run").test_split(replace(given, val_fraction=0.25)) == "val"


def _share(given, meet):
    timing.TURN_SECONDS["cpu"] = 0.001
    meet.wait()
    run_experiment(given, COSTS, only=["1-8"], console=QUIET)


def test_two_processes_share_an_experiment(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patnet.experiments.run"])
    meet, given = context.Barrier(2), config(photos, tmp_path / "shared", seeds=3)
    both = [context.Process(target=_share, args=(given, meet)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert trainings(tmp_path / "shared") == {f"1-8 seed-{seed}": 1 for seed in range(3)}
    results = json.loads((tmp_path / "shared" / "results.json").read_text())
    assert sum(r["top1"] is not None for r in results["runs"]) == 3


def _hold(file, held, enough):
    with claimed(file):
        held.set()
        enough.wait()


def test_a_claim_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    held, enough = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "claim", held, enough))
    other.start()
    assert held.wait(60)
    with claimed(tmp_path / "claim") as got:
        assert not got
    other.kill()
    other.join()
    with claimed(tmp_path / "claim") as got:
        assert got


def weights(variant):
    return sum(p.numel() for p in create(variant, device="meta").parameters())


def test_widths_are_searched_until_the_times_are_equal(monkeypatch):
    variants = {
        "small": Variant("patnet_t0", {**TINY_NETWORK, "embed_dim": 16}),
        "deep": Variant("patnet_t0", {**TINY_NETWORK, "embed_dim": 16, "depths": [3, 3, 3, 3]}),
    }
    prepared = cost._prepared
    monkeypatch.setattr(cost, "_prepared", lambda v, *_: [weights(each) for each in v.values()])
    # A clock that counts weights: the best width is known.
    monkeypatch.setattr(cost, "_turns", lambda times, *_: [Turns([[time]] * 3) for time in times])
    lines = []
    found = match_widths(variants, "small", COSTS, lines.append)
    assert found["small"] == variants["small"]
    args, target = found["deep"].model_args, weights(found["small"])

    def distance(width):
        return abs(math.log(weights(Variant("patnet_t0", {**args, "embed_dim": width})) / target))

    width = args["embed_dim"]
    assert width == min(range(8, 33, 2), key=distance)
    assert 8 < width < 16
    assert f"deep of width {width}: " in "".join(lines)
    monkeypatch.setattr(cost, "_prepared", prepared)
    assert len(cost._prepared(found, 32, 1, COSTS)) == 2  # and what was found does run


def test_the_command_line(done, photos, tmp_path, capfd):
    assert main(["experiment", "list", "--json"]) == 0
    assert "components" in json.loads(capfd.readouterr().out)
    for words, said in (
        (["componets", "--out", "x"], "did you mean 'components'"),
        (["ratio"], "give --out too"),
        (["ratio", "--out", str(done[0]), "--only", "1-3"], "no configuration of ratio"),
        (["ratio", "--out", str(done[0]), "--epochs", "5"], "--epochs is 1 there and 5 here"),
        (["ratio", "--out", str(tmp_path / "x"), "--cost_only", "--runtime", "eagr"], "did you mean 'eager'"),
    ):
        assert main(["experiment", *words]) == 2
        err = capfd.readouterr().err
        assert said in err
        assert err.startswith("patnet: ")


def test_reports_are_published_without_the_runs(done, tmp_path, capfd):
    out = tmp_path / "docs"
    assert main(["experiment", "report", str(done[0].parent), "--out", str(out)]) == 0
    assert capfd.readouterr().out.strip() == str(out / "results.md")
    page = (out / "results.md").read_text()
    assert "| [ratio](ratio/report.md) | A quarter of the channels" in page
    assert "| 4 of 8 |" in page
    assert {file.name for file in (out / "ratio").iterdir()} == {"report.md", "report.png", "results.json"}
    with Image.open(done[0] / "report.png") as drawn, Image.open(out / "ratio" / "report.png") as published:
        assert published.size == drawn.size
        difference = np.abs(np.asarray(drawn.convert("RGB"), float) - np.asarray(published.convert("RGB"), float))
        assert difference.mean() < 1
    assert main(["experiment", "report", str(done[0].parent), "--out", str(out)]) == 0  # writes it anew
    capfd.readouterr()
    (tmp_path / "damaged" / "x").mkdir(parents=True)
    (tmp_path / "damaged" / "x" / "results.json").write_text("{")
    for words, said in (
        (["report"], "give the folder of the experiments"),
        (["report", str(tmp_path / "docs2"), "--out", str(out)], "none of its folders is an experiment"),
        (["report", str(tmp_path / "damaged"), "--out", str(out)], "results.json: is damaged"),
        (["ratio", "runs", "--out", str(out)], "only report takes a folder"),
    ):
        assert main(["experiment", *words]) == 2
        assert said in capfd.readouterr().err


def test_a_plan_measures_each_configuration(photos, capfd, monkeypatch):
    options = [f"--{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in TINY.items() if v is not None]
    words = ["ratio", "--plan", "--plan_seconds", "0.1", "--data", str(photos), "--only", "1-8", *options]
    assert main(["experiment", *words, "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)
    (row,) = planned["configurations"]
    assert (row["configuration"], row["runs_to_do"]) == ("1-8", 2)
    assert planned["seconds"] == pytest.approx(2 * row["seconds_per_run"])
