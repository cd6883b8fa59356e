"""An experiment from end to end: interrupted, resumed, shared, and refused if it does not fit."""

import json
import math
import multiprocessing
import re
import sys

import cost
import numpy as np
import pytest
import run
import torch
import yaml
from config import ExperimentConfig
from images import write_images
from rich.console import Console
from study import Study

from patnet import InputError
from patnet.bench import Timing
from patnet.cli import main
from patnet.train import Interrupted, RunModule

QUIET = Console(quiet=True)
TINY = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": 1, "feature_dim": 16}
OPTIONS = {"img_size": 32, "epochs": 1, "batch_size": 8, "workers": 0, "seeds": 2, "accelerator": "cpu", "lr": 1e-3}
OPTIONS |= {"model_kwargs": TINY, "model_ema_decay": None, "cost_sizes": [32], "cost_batch": 2, "cost_seconds": 0.01}
ONLY = ["1-8", "1-4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    counts = {"train/a": 8, "train/b": 8, "test/a": 4, "test/b": 4}
    return write_images(tmp_path_factory.mktemp("images"), **counts)


def study_of(images, out, name="ratio", **options):
    return Study(name, ExperimentConfig(**{"data": str(images), "out": str(out), **OPTIONS, **options}))


def trainings(out):
    """How often each run was started or resumed: each time leaves a file of TensorBoard."""
    runs = out.glob("runs/*/*/")
    return {f"{path.parent.name} {path.name}": len(list(path.glob("tensorboard/events*"))) for path in runs}


def results_in(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    """A study that was interrupted in its second run and resumed, its results before, and what was printed."""
    out = tmp_path_factory.mktemp("experiment") / "ratio"
    study, steps = study_of(images, out), []
    step = RunModule.on_train_batch_start

    def interrupt(self, *args):
        steps.append(args)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunModule, "on_train_batch_start", interrupt)
        with pytest.raises(Interrupted):
            run.execute(study, ONLY, QUIET)
    early, costs = results_in(out), (out / "costs.json").read_bytes()
    printed = Console(record=True, width=120, file=(out / ".printed").open("w"))
    run.execute(study, ONLY, printed, "python experiments/run.py ratio")
    assert (out / "costs.json").read_bytes() == costs  # measured once
    return study, early, printed.export_text()


def test_an_interrupted_experiment_resumes_and_has_the_numbers_of_its_runs(done):
    study, early, printed = done
    results = results_in(study.path)
    assert [r["configuration"] for r in early["runs"] if r["top1"] is not None] == ["1-8"]
    assert trainings(study.path) == {"1-8 seed-0": 1, "1-4 seed-0": 2, "1-8 seed-1": 1, "1-4 seed-1": 1}
    assert "run 2 of 4: 1-4, seed 0, about " in printed
    finished = [(r["configuration"], r["seed"]) for r in results["runs"] if r["state"] == "finished"]
    assert finished == [("1-8", 0), ("1-8", 1), ("1-4", 0), ("1-4", 1)]
    assert not list(study.path.glob("runs/*/*/checkpoints"))
    top1 = {}
    for name in ONLY:
        files = [study.run(name, seed) / "evaluation-test" / "metrics.json" for seed in study.seeds]
        top1[name] = np.array([json.loads(file.read_text())["top1"] for file in files])
    (row,) = results["differences"]
    assert row["mean"] == pytest.approx((top1["1-8"] - top1["1-4"]).mean(), abs=1e-5)
    assert results["images"] == 8
    assert "**Incomplete: 4 of 8 runs are missing" in (study.path / "report.md").read_text()
    options = yaml.safe_load((study.run("1-8", 1) / "config.yaml").read_text())
    assert (options["seed"], options["model_kwargs"]["partial_ratio"]) == (1, 0.125)


def test_nothing_is_repeated_and_seeds_can_be_added(done, images):
    study = done[0]
    before = trainings(study.path)
    run.execute(study_of(images, study.path, seeds=1), ONLY, QUIET)
    assert results_in(study.path)["seeds"] == [0, 1]
    run.execute(study, [], QUIET)  # costs only: the runs stay in the report
    assert len(results_in(study.path)["differences"]) == 1
    assert trainings(study.path) == before


def test_other_options_are_refused_by_name(done, images, tmp_path):
    study = done[0]
    with pytest.raises(InputError, match=r"--lr is 0\.001 there and 0.1 here"):
        study_of(images, study.path, lr=0.1).start()
    with pytest.raises(InputError, match="holds the experiment ratio; change --out"):
        study_of(images, study.path, "position").start()
    with pytest.raises(InputError, match="holds no experiment"):
        study_of(images, images).start()
    new = study_of(images, tmp_path / "x").start()
    new.costs.write_text("{}")
    with pytest.raises(InputError, match="is damaged; remove it"):
        new.read_costs()
    study_of(images, tmp_path / "x", lr=0.1).start()  # until a run has started, options may change
    assert yaml.safe_load(new.options.read_text())["lr"] == 0.1
    assert not new.costs.exists()


def test_images_of_a_test_are_needed(images, tmp_path):
    with pytest.raises(InputError, match="--val-fraction"):
        run.open_split(study_of(images / "train", tmp_path, val_fraction=0.0))
    assert run.open_split(study_of(images / "train", tmp_path, val_fraction=0.25))[0] == "val"


def test_an_analysis_that_needs_more_images_is_reported(images, tmp_path):
    run.execute(study_of(images, tmp_path / "x", "redundancy", seeds=1), ["patnet"], QUIET)
    report = (tmp_path / "x" / "report.md").read_text()
    assert "There is none: 8 images give" in report
    assert "The top-1 accuracy of patnet is" in report
    assert not (tmp_path / "x" / "report.png").exists()  # there is nothing to compare


def test_trained_networks_are_analysed(done):
    networks = [next(run.trained_networks(done[0]))]
    (name, model, images), position = networks[0], run.EXPERIMENTS["position"].analysis
    assert (name, tuple(images.shape), model.training) == ("1-8", (8, 1, 32, 32), False)
    result = position.measure(iter(networks))
    assert position.finding(result).endswith("(1-8).")
    assert "| 1-8 | 4.1 | bias | 1x1 |" in position.to_markdown(result)
    assert list(position.draw(result)) == ["1-8"]


def test_components_that_did_not_move_are_found(images, tmp_path):
    study = study_of(images, tmp_path, "attentions")
    study.run("gct", 0).mkdir(parents=True)
    for moved in (0.0, 1e-3, 0.1):
        network = cost.create("patnet_t0", study.networks["gct"])
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name.endswith((".gamma", "norm.weight")):
                    value += moved
        found = study.components("gct", network)
        assert (found["GCT"], found["RelativePosition"]) == (pytest.approx(moved), 0)
        result = {"split": "test", "images": 8, "top1": 0.5, "moved": found}
        (study.run("gct", 0) / "tested.json").write_text(json.dumps(result))
        (study.run("gct", 0) / "config.yaml").write_text("")
        (row,) = [r for r in study.results()["runs"] if r["top1"] is not None]
        assert row["unmoved"] == ({} if moved > 0.01 else {"GCT": pytest.approx(moved)})


def _share(study, barrier, share):
    barrier.wait()
    run.execute(study, ["1-8"], QUIET, share=share)


def test_two_processes_share_an_experiment(images, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, study = context.Barrier(2), study_of(images, tmp_path / "shared", seeds=2)
    with pytest.raises(InputError, match="measure the costs first"):
        run.execute(study, ["1-8"], QUIET, share="1/2")
    run.execute(study, [], QUIET)
    both = [context.Process(target=_share, args=(study, barrier, share)) for share in ("1/2", "2/2")]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert trainings(study.path) == {"1-8 seed-0": 1, "1-8 seed-1": 1}
    run.execute(study, ["1-8"], QUIET)  # writes the report
    assert sum(r["top1"] is not None for r in results_in(study.path)["runs"]) == 2
    with pytest.raises(InputError, match="must be like 1/2"):
        run.execute(study, ["1-8"], QUIET, share="3/2")


def test_widths_are_searched_until_the_latencies_are_equal(images, tmp_path, monkeypatch):
    config = study_of(images, tmp_path).config
    small, deep = {**TINY, "embed_dim": 16}, {**TINY, "embed_dim": 16, "depths": [3, 3, 3, 3]}

    def weights(model_kwargs):
        return sum(p.numel() for p in cost.create("patnet_t0", model_kwargs).parameters())

    def measure(networks, *_):  # a clock that counts weights, so that the best width is known
        return {name: Timing([[weights(kwargs)]] * 3) for name, kwargs in networks.items()}

    monkeypatch.setattr(cost, "measure_latency", measure)
    lines = []
    found = cost.match_widths({"small": small, "deep": deep}, "small", config, lines.append)
    assert found["small"] == small
    width = found["deep"]["embed_dim"]
    assert width == min(
        range(8, 33, 2), key=lambda w: abs(math.log(weights({**deep, "embed_dim": w}) / weights(small)))
    )
    assert 8 < width < 16
    assert f"deep, width {width}: " in "".join(lines)
    monkeypatch.undo()
    assert len(cost.measure_latency(found, 32, 1, config, 0.01)["deep"].rounds) >= 3


def test_the_command_line(done, images, tmp_path, capfd):
    script = sys.modules["run"]
    assert main(["list"], script) == 0
    assert "components: PAT_ch, PAT_sp and PAT_sf each" in capfd.readouterr().out
    out = str(done[0].path)
    for words, message in (
        (["componets"], "did you mean 'components'"),
        (["ratio", "--out", out, "--only", "1-3"], "no configuration of ratio (did you mean '1-8'"),
        (["ratio", "--out", out, "--epochs", "5", "--data", str(images)], "--epochs is 1 there and 5 here"),
        (["ratio", "--out", str(tmp_path), "--cost-only", "--backend", "eagr"], "did you mean 'eager'"),
        (["report"], "give the folder of the experiments"),
        (["ratio", "runs"], "only report takes a folder"),
    ):
        assert main(words, script) == 2
        error = capfd.readouterr().err
        assert message in error
        assert error.startswith("patnet: ")


def test_a_plan_measures_each_configuration(images, capfd):
    shown = {name: OPTIONS[name] for name in ("img_size", "epochs", "batch_size", "workers", "seeds", "model_kwargs")}
    words = [f"--{name.replace('_', '-')}={json.dumps(value)}" for name, value in shown.items()]
    words += ["--plan", "--plan-seconds", "0.1", "--data", str(images), "--only", "1-8", "--accelerator", "cpu"]
    assert main(["ratio", *words], sys.modules["run"]) == 0
    assert re.search(r"\| 1-8 \| [\d.]+ \| .+ \| 2 \|\n.+ in total", capfd.readouterr().out)
