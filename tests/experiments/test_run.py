"""The experiments from end to end on a small data set: searched, trained, resumed, reported."""

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import cost
import fit
import pool
import pytest
import run
import timm
import torch
import torch.nn.functional as F
import yaml
from protocol import PROTOCOL, Run, read_protocol
from report import MARKS

from patnet import InputError, load
from patnet.bench import Timing
from patnet.cli import main

SMALL = {"embed_dim": 8, "in_chans": 1, "num_classes": 10, "num_heads": 1, "feature_dim": 16, "depths": [1, 1, 1, 1]}
SEARCH = {"configuration": "base", "seed": 9, "val_fraction": 0.5, "lr": [0.001, 0.01], "epochs": [1, 2], "margin": 0.0}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A protocol of a small network, and its file."""
    protocol = replace(
        read_protocol(),
        model_kwargs=SMALL,
        img_size=32,
        batch_size=16,
        precision="fp32",
        search=SEARCH,
        seeds=[[0], [1]],
        configurations={"base": {}, "gct": {"channel_attn": "gct"}, "none": {"channel_attn": "none"}},
        experiments={},
    )
    content = asdict(protocol)
    content["experiments"] = {
        "gates": {
            "title": "Gates",
            "baseline": "base",
            "configurations": ["base", "gct", "none"],
            "claims": [["base", "more accurate", "gct", "Better than GCT"]],
        }
    }
    file = tmp_path_factory.mktemp("protocol") / "protocol.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_protocol(file), file


@pytest.fixture
def images(monkeypatch):
    """Classes of 28x28 images that differ in where a bar is: easy to learn."""
    generator = torch.Generator().manual_seed(0)

    def some(count):
        labels = torch.randint(0, 10, (count,), generator=generator)
        pixels = 0.3 * torch.randn(count, 1, 28, 28, generator=generator)
        for i, label in enumerate(labels.tolist()):
            pixels[i, :, 2 * label + 3 : 2 * label + 6] += 2
        return fit.Images(pixels, labels)

    found = some(320), some(100)
    for module in (fit, run):
        monkeypatch.setattr(module, "open_images", lambda *_: found)
    return found


def test_training_learns_and_is_repeatable(small, images):
    protocol = small[0]
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        network = protocol.network("base")
        losses = list(fit.steps(network, images[0], protocol, 0.01, 6, 3))
        assert len(losses) == 6 * 20
        found.append((losses, fit.top1(network, images[1], 32)))
    assert found[0] == found[1]
    assert found[0][1] > 0.6
    torch.manual_seed(3)
    order = list(fit.steps(protocol.network("base"), images[0], protocol, 0.01, 1, 4))
    assert order != found[0][0][:20]


def test_the_requested_images_are_mirrored():
    pixels = torch.arange(28.0).expand(2, 1, 28, 28)
    images = fit.Images(pixels, torch.tensor([0, 1]))
    batch, labels = images.batch(torch.tensor([1, 0]), 28, torch.tensor([True, False]))
    assert torch.equal(batch[0], pixels[1].flip(2))
    assert torch.equal(batch[1], pixels[0])
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(("kernel", "stride", "padding", "groups"), [(1, 1, 0, 1), (3, 1, 1, 16), (4, 4, 0, 1)])
def test_bfloat16_in_float32_rounds_results_alone(kernel, stride, padding, groups):
    def compute(x, weight, bias, matrix):
        y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        grads = torch.autograd.grad(y, (x, weight, bias), weights.to(y.dtype))
        return [y, *grads, x[0, 0] @ matrix, F.linear(x[0, 0], matrix.T, bias[:7])]

    torch.manual_seed(kernel)
    shapes = [(8, 16, 12, 12), (32, 16 // groups, kernel, kernel), (32,), (12, 7)]
    inputs = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    with torch.library._scoped_library("aten", "IMPL") as library:
        fit.compute_bfloat16_in_float32(library)
        found = compute(*inputs)
    for value, true in zip(
        found, compute(*(value.detach().double().requires_grad_() for value in inputs)), strict=True
    ):
        assert value.dtype is torch.bfloat16
        torch.testing.assert_close(value.double(), true, rtol=2**-8, atol=1e-3)


def test_components_that_did_not_move_are_found(small):
    network = small[0].network("gct")
    initial = {name: value.detach().clone() for name, value in network.named_parameters()}
    assert set(fit.moved(initial, network).values()) == {0.0}
    assert {"GCT", "RelativePosition", "PAT_ch"} <= set(fit.moved(initial, network))
    with torch.no_grad():
        for name, value in network.named_parameters():
            if ".gamma" in name:
                value += 0.2
            if name.endswith("position.table"):
                value[..., :2] += 0.1  # the buckets that occur
    found = fit.moved(initial, network)
    assert (found["GCT"], found["RelativePosition"], found["PAT_ch"]) == (pytest.approx(0.2), pytest.approx(0.1), 0)
    gates = timm.create_model("patnet_t0", channel_attn="se")  # timm's
    assert "SEModule" in fit.moved(dict(gates.named_parameters()), gates)


def test_a_run_gives_its_network_and_what_it_found(small, images, tmp_path):
    protocol, wanted = small[0], Run("gct", 1, 0.01, 2)
    result = pool.result_of(fit.train_run, wanted, protocol, tmp_path, None)
    loaded = load(tmp_path / "cpu" / "gct" / "seed-1")
    assert result["top1"] == fit.top1(loaded.model, images[1], 32)
    assert result["moved"]["PAT_ch"] > 0.01
    assert tuple(loaded.data_config["input_size"]) == (1, 32, 32)
    assert (result["configuration"], result["seed"], result["images"]) == ("gct", 1, 100)


def test_training_that_diverges_is_a_result(small, images, tmp_path):
    protocol = replace(small[0], weight_decay=math.inf)
    result = pool.result_of(fit.train_run, Run("base", 0, 0.01, 1), protocol, tmp_path, None)
    assert result["loss"] is None
    assert result["top1"] < 0.3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_search_takes_the_fewest_epochs_within_the_margin(small, tmp_path, device):
    protocol = small[0]
    accuracies = {(0.001, 1): 0.89, (0.01, 1): 0.905, (0.001, 2): 0.91, (0.01, 2): 0.90}
    with pytest.raises(InputError, match="4 of 4 runs of the search are missing; run the command search"):
        run.choose(protocol, tmp_path, device)
    results = [{**r._asdict(), "top1": accuracies[r.lr, r.epochs]} for r in protocol.search_runs("cuda")]
    results.append({**Run("base", 0, 0.01, 1)._asdict(), "top1": 0.99})  # a run that is not of the search
    (tmp_path / run.RESULTS).write_text("".join(json.dumps(result) + "\n" for result in results))
    assert run.choose(protocol, tmp_path, device) == (0.001, 2)  # that of one device holds for the other
    assert run.choose(replace(protocol, search={**SEARCH, "margin": 0.006}), tmp_path, device) == (0.01, 1)
    assert len(run.missing(run.search_of(protocol, tmp_path, device), tmp_path / run.RESULTS)) == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_one_device_has_in_full_is_not_trained_on_the_other(small, tmp_path, device):
    protocol = small[0]
    *first, last = protocol.runs(0.01, 1, "cuda")
    (tmp_path / run.RESULTS).write_text("".join(json.dumps(r._asdict()) + "\n" for r in first))
    assert run.runs_of(protocol, tmp_path, device, 0.01, 1) == protocol.runs(0.01, 1, device)
    with (tmp_path / run.RESULTS).open("a") as file:
        file.write(json.dumps(last._asdict()) + "\n")
    assert run.runs_of(protocol, tmp_path, device, 0.01, 1) == [*first, last]


@pytest.fixture
def in_process(monkeypatch):
    """Runs in this process, which has the small images."""
    from concurrent.futures import Future

    class Pool:
        def __init__(self, *_):
            pass

        def shutdown(self, **_):
            pass

        def submit(self, function, *args):
            future = Future()
            try:
                future.set_result(function(*args))
            except RuntimeError as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(pool, "ProcessPoolExecutor", Pool)


def test_a_line_that_was_cut_short_is_computed_again_and_a_damaged_one_is_named(tmp_path, in_process):
    store, runs = tmp_path / "results.jsonl", [Run("base", seed, 0.1, 1) for seed in range(3)]
    jobs = [pool.Job(store, r, lambda r: {**r._asdict(), "seconds": 1.0}, (r,)) for r in runs]
    assert pool.finish(jobs[:2], 1) == 0
    whole = store.read_text()
    store.write_text(whole[:-5])
    absent = pool.missing(runs, store)  # the last line, and the run that was not computed
    assert (len(absent), absent[-1]) == (2, runs[2])
    assert pool.finish(jobs, 1) == 0
    assert sorted(result["seed"] for result in pool.read(store)) == [0, 1, 2]
    store.write_text(whole.replace("{", "[", 1))
    with pytest.raises(InputError, match="line 1: is damaged"):
        pool.read(store)


def test_runs_in_processes_end_with_ctrl_c(tmp_path):
    store = tmp_path / "results.jsonl"
    jobs = [pool.Job(store, Run("base", seed, 0.1, 1), dict, ({"seed": seed, "seconds": 1.0},)) for seed in range(2)]
    assert pool.finish(jobs, 1) == 0
    assert [result["seed"] for result in pool.read(store)] == [0, 1]
    code = "import pool, time; from pathlib import Path; print('start', flush=True); list(pool.in_processes("
    code += "[pool.Job(Path(), None, time.sleep, (600,))] * 3, 1))"
    environment = {**os.environ, "PYTHONPATH": str(PROTOCOL.parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=-3) as process:
        try:
            assert process.stdout.readline() == b"start\n"
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) != 0
        finally:
            process.kill()


def test_the_commands_from_search_to_report(small, images, in_process, tmp_path, capfd, monkeypatch):
    file = small[1]
    script, out = sys.modules["run"], tmp_path / "out"
    common = ["--protocol", str(file), "--out", str(out)]
    networks = ["--networks", str(tmp_path / "networks")]
    assert main(["plan", *common], script) == 0
    printed = capfd.readouterr().out
    assert "search: 4 runs; here with 2 epochs" in printed
    assert re.search(r"\| gates, seeds 0 to 0 \| 3 \|", printed)
    assert main(["train", *networks, *common], script) == 2
    assert "run the command search" in capfd.readouterr().err
    assert main(["search", *common], script) == 0
    assert "Chosen: learning rate 0.0" in capfd.readouterr().out

    trained, kept = [], run.train_run

    def broken(job, *args):
        trained.append(job)
        if job.configuration == "none":
            raise RuntimeError("no memory")
        return kept(job, *args)

    monkeypatch.setattr(run, "train_run", broken)
    assert main(["train", *networks, *common], script) == 1
    assert ": RuntimeError: no memory; " in capfd.readouterr().out
    monkeypatch.setattr(run, "train_run", lambda job, *args: trained.append(job) or kept(job, *args))
    assert main(["train", *networks, *common], script) == 0
    assert [job.configuration for job in trained] == ["base", "gct", "none"] * 2 + ["none"] * 2
    assert main(["costs", "--seconds", "0.1", *common], script) == 0
    (tmp_path / "experiments.md").write_text("\n".join(MARKS))
    assert main(["report", "--pages", str(tmp_path), *common], script) == 0
    page = (tmp_path / "experiments.md").read_text()
    assert "6 of 6 runs have results" in page
    assert "| Better than GCT | [gates](#gates) | **" in page
    assert (tmp_path / "images" / "experiment-gates.png").exists()
    trained.clear()
    store, gct = out / "results.jsonl", tmp_path / "networks" / "cpu" / "gct"
    before = store.read_text()
    shutil.rmtree(gct / "seed-1")  # as in a clone, which has results and no networks
    for _ in range(2):
        shutil.rmtree(gct / "seed-0")
        for only in (["base", "gct"], ["base", "gct"], ["none"]):
            assert main(["train", "--only", *only, *networks, *common], script) == 0
    assert [(job.configuration, job.seed) for job in trained] == [("gct", 0), ("gct", 1), ("gct", 0)]
    assert store.read_text() == before
    for seed in (0, 1):
        assert [result["seed"] for result in pool.read(gct / f"seed-{seed}" / "results.jsonl")] == [seed]
        assert load(gct / f"seed-{seed}")
    changed = tmp_path / "other.yaml"
    changed.write_text(file.read_text().replace("batch_size: 16", "batch_size: 8"))
    for command in ("train", "report"):  # whose answers follow the protocol
        assert main([command, *common[2:], "--protocol", str(changed)], script) == 2
        assert "batch_size was 16 and is 8" in capfd.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_counts_on_a_core_for_each_process_but_on_one_gpu(small, images, tmp_path, capsys, monkeypatch, device):
    clock = itertools.count(step=100).__next__
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    found = []
    for processes in (1, 8):
        run.plan(small[0], tmp_path, None, device, processes)
        printed = capsys.readouterr().out
        assert ("; hours on one GPU." in printed) == (device == "cuda")
        assert (f"; hours for {processes} processes that have a core each." in printed) == (device == "cpu")
        found.append(float(re.search(r"\| gates, seeds 1 to 1 \| 3 \| .*? \| (.*?) \|", printed)[1]))
    assert found[0] == pytest.approx(found[1] * (8 if device == "cpu" else 1), abs=0.5)
    assert found[0] > 1


def test_words_that_cannot_be_used_are_refused(tmp_path, capfd):
    script = sys.modules["run"]
    for words, message in (
        (["tain"], "train"),
        (["train", "--only", "bse"], "--only bse: is no configuration"),
        (["train", "--processes", "0"], "--processes"),
        (["train", "--protocol", str(tmp_path / "x.yaml")], "is no protocol"),
        (["report", "--only", "base"], "--only: belongs to train or match"),
    ):
        assert main([*words, "--out", str(tmp_path)], script) == 2
        assert message in capfd.readouterr().err


def test_missing_files_of_the_data_say_what_brings_them(tmp_path):
    with pytest.raises(InputError, match="dataset-fashion-mnist, or give --data-root"):
        fit.open_images.__wrapped__("fashion-mnist", str(tmp_path), 0.0, "cpu")


def test_the_latency_of_each_width_is_relative_to_base(small, monkeypatch):
    protocol = replace(read_protocol(PROTOCOL), model_kwargs={**SMALL, "embed_dim": 16})

    def weights(name, **changes):
        return sum(p.numel() for p in protocol.network(name, **changes).parameters())

    def measure(networks, *_):  # a clock that counts weights, so that the ratios are known
        return {name: Timing([[sum(p.numel() for p in n.parameters())]] * 3) for name, n in networks.items()}

    monkeypatch.setattr(cost, "measure_latency", measure)
    found = cost.match_width(protocol, "conv", 1.0)
    expected = {width: weights("conv", embed_dim=width) / weights("base") for width in cost.WIDTHS}
    assert found == pytest.approx(expected, abs=1e-3)
    monkeypatch.undo()
    timings = cost.measure_latency({"base": protocol.network("base")}, 32, 1, 0.01)
    assert len(timings["base"].rounds) >= 3
