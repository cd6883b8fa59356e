"""The scripts of benchmarks/, on the smallest networks and images."""

import argparse
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch

from benchmarks import data_loading, detection, peers, scale, training_step
from patnet import fuse
from patnet.bench import machine, timing
from patnet.cli import main
from patnet.data import elpv
from patnet.deploy import ExportInfo, prepare
from patnet.deploy.backend import Request
from patnet.models import PUBLISHED

PAIR = ("patnet_t0", "fasternet_t0")


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.005)


def test_every_published_accuracy_has_a_source_and_a_model():
    sources, models = peers.PUBLISHED["sources"], peers.PUBLISHED["models"]
    for name, entry in models.items():
        weights = entry.get("weights", name)
        assert timm.is_model(name), name
        assert weights.split(".")[0] == name
        assert timm.get_pretrained_cfg(weights).input_size[-1] == entry["size"], name
        assert 60 < entry["top1"] < 90, name
        assert sources[entry["source"]]["url"].startswith("https://"), name
    assert {entry["source"] for entry in models.values()} == set(sources)
    assert {name: models[name]["top1"] for name in PUBLISHED} == PUBLISHED


def test_each_network_is_compared_with_the_patnet_nearest_in_accuracy():
    groups = peers.group()
    assert sorted(model for models in groups for model in models) == sorted(
        entry.get("weights", name) for name, entry in peers.PUBLISHED["models"].items()
    )
    of = {model: models[-1] for models in groups for model in models}
    assert of["fasternet_s"] == "patnet_s"
    assert of["repvit_m1_0.dist_300e_in1k"] == "patnet_t2"
    families = {peers.published(model)["family"] for models in peers.group(["RepViT"]) for model in models}
    assert families == {"PATNet", "RepViT"}


@pytest.fixture
def few(monkeypatch):
    """Three networks with published accuracies; backends that the script adds are removed again."""
    names = ("patnet_t0", "fasternet_t0", "mobilenetv4_conv_small")
    monkeypatch.setitem(peers.PUBLISHED, "models", {name: peers.PUBLISHED["models"][name] for name in names})
    monkeypatch.setitem(peers.BACKENDS, "openvino-blocked", peers.BlockedOpenVINO())


def test_peers_are_measured_and_drawn(few, tmp_path, capsys):
    assert main(["--backends", "eager", "--seconds", "0.05", "--out", str(tmp_path)], script=peers) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "benchmarks-peers.json").read_text())
    assert [row["top1"] for row in result["rows"]] == [71.9, 73.7, 73.9]
    assert re.search(r"fasternet_t0 \| PyTorch eager \| 71.9 \| 224 .* of patnet_t0 \|", printed)
    assert "(https" not in printed
    assert "<https://github.com/haiduo" in (tmp_path / "benchmarks-peers.md").read_text()
    assert (tmp_path / "images" / "benchmarks-peers.png").stat().st_size > 10_000


def test_an_earlier_result_stays_if_nothing_was_measured(few, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[peers.measure.__module__], "interleave", interrupted)
    (tmp_path / "benchmarks-peers.json").write_text("earlier")
    argv = ["--families", "FasterNet", "--backends", "eager", "--out", str(tmp_path)]
    assert main(argv, script=peers) == 130
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


def test_a_page_says_what_int8_leaves_in_float32():
    row = {"model": "patnet_t0", "way": "OpenVINO", "fastest": True, "img_size": 224, "parameters": 1e6, "gmacs": 0.1}
    row |= {"median_ms": 1.0, "images_per_s": 1.0, "ratio_fastest": None, **peers.published("patnet_t0")}
    result = {"complete": True, "seconds": 1, "command": "x", "machine": machine(), "left_out": []}
    for precision, backend, paragraphs in (
        ("fp32", "openvino", []),
        ("fp32", "openvino-blocked", [peers.BLOCKED]),
        ("int8", "openvino", [peers.INT8]),
        ("int8", "openvino-nncf", [peers.INT8, peers.NNCF]),
    ):
        page = peers.to_markdown({**result, "rows": [row | {"precision": precision, "backend": backend}]}, "x.png")
        assert [text for text in (peers.BLOCKED, peers.INT8, peers.NNCF) if text in page] == paragraphs


def test_a_peer_that_is_faster_and_as_accurate_is_in_bold():
    row = {"model": "mobilenetv4_conv_small", "way": "eager", "fastest": True, "img_size": 224, "parameters": 1e6}
    row |= {"gmacs": 0.1, "median_ms": 1.0, "images_per_s": 1.0, "baseline": "patnet_t0", "top1": 73.9}
    for ratio, bold in ((0.9, True), (1.1, False)):
        _, (cells,) = peers.table([row | {"ratio_fastest": {"ratio": ratio, "low": ratio, "high": ratio}}])
        assert cells[0].startswith("**") == bold


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The smallest pair on a small image, with the files that were written."""
    out = tmp_path_factory.mktemp("detection")
    pytest.importorskip("faster_coco_eval")
    options = ["--size", "64", "96", "--rounds", "1", "--backends", "eager", "openvino", "--out", str(out)]
    assert main(["--pairs", ":".join(PAIR), "--detector", "faster_rcnn", *options], script=detection) == 0
    return out, json.loads((out / "detection-speed.json").read_text())


def test_backbones_are_compared_in_each_backend_and_in_the_fastest(measured):
    _, result = measured
    assert result["complete"]
    assert result["left_out"] == []
    backbones = [row for row in result["rows"] if row["part"] == "backbone"]
    assert [(row["model"], row["way"]) for row in backbones] == [
        (m, way) for way in ("PyTorch eager", "PyTorch eager, channels_last", "OpenVINO") for m in PAIR
    ]
    assert [sum(row["fastest"] for row in backbones if row["model"] == model) for model in PAIR] == [1, 1]
    ratios = [r for r in result["ratios"] if r["part"] == "backbone"]
    assert {row["way"] for row in backbones} == {
        r["first"]["way"] for r in ratios if r["first"]["way"] == r["second"]["way"]
    }
    assert sum(r["fastest"] for r in ratios) == 1
    assert all(r["low"] <= r["ratio"] <= r["high"] for r in ratios)


def test_detectors_have_the_same_work_and_files_hold_the_ratios(measured):
    out, result = measured
    first, second = (row for row in result["rows"] if row["part"] == "faster_rcnn")
    assert first["objects"] == second["objects"] == 100
    text = (out / "detection-speed.md").read_text()
    assert f"{result['ratios'][0]['ratio']:.3f}" in text
    assert "64x96 px" in text
    assert (out / "images" / "detection-speed.png").stat().st_size > 10_000


def test_other_detectors_and_an_interruption(tmp_path, monkeypatch, capsys):
    options = ["--size", "64", "64", "--rounds", "1", "--backends", "eager", "--out", str(tmp_path), "--json"]
    assert main(["--pairs", "patnet_t0:resnet10t", "--detector", "retinanet", *options], script=detection) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["objects"] for row in rows] == [None, None, None, None, 100, 100]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(detection, "measure_pair", interrupted)
    assert main(["--pairs", "patnet_t0:resnet10t", *options], script=detection) == 130
    assert not json.loads(capsys.readouterr().out)["complete"]
    assert json.loads((tmp_path / "detection-speed.json").read_text())["complete"]  # the earlier one


def test_a_pair_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    build = detection.build_detector

    def failing(detector, model, *size):
        if model == "fasternet_t0":
            raise RuntimeError("out of memory")
        return build(detector, model, *size)

    monkeypatch.setattr(detection, "build_detector", failing)
    options = ["--size", "64", "64", "--rounds", "1", "--backends", "eager", "--backbone-only", "--out", str(tmp_path)]
    assert main(["--pairs", "patnet_t0:resnet10t", ":".join(PAIR), *options], script=detection) == 0
    result = json.loads((tmp_path / "detection-speed.json").read_text())
    assert not result["complete"]
    assert {row["model"] for row in result["rows"]} == {"patnet_t0", "resnet10t"}
    assert result["left_out"] == ["patnet_t0 and fasternet_t0: out of memory"]
    assert "**Incomplete: not everything" in (tmp_path / "detection-speed.md").read_text()
    capsys.readouterr()
    assert main(["--pairs", ":".join(PAIR), *options], script=detection) == 2
    assert capsys.readouterr().err == f"patnet: nothing could be measured: {result['left_out'][0]}\n"


def test_a_training_step_is_measured(capsys):
    options = ["--img-size", "32", "--batch-size", "2", "--threads", "1"]
    argv = ["--models", "patnet_t0", "resnet10t", *options, "--no-compiled", "--seconds", "0.1", "--json"]
    assert main(argv, script=training_step) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["patnet_t0, fp32", "resnet10t, fp32"]
    assert found["resnet10t, fp32"]["ratio"] == 1
    assert all(row["images_per_s"] > 0 for row in found.values())
    assert main(["--models", "patnet_t0", *options, "--profile"], script=training_step) == 0
    printed = capsys.readouterr().out
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in timm.create_model("patnet_t0").modules())
    assert int(re.search(r"convolutions \| [\d.]+ \| (\d+)", printed)[1]) >= 2 * convolutions
    assert "optimizer" in printed


def test_a_step_in_bf16_computes_in_it():
    for precision in ("fp32", "bf16"):
        step = training_step.training_step("resnet10t", 32, 2, precision=precision)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            step()
        assert ("ToCopyBackward0" in {event.key for event in profiler.events()}) == (precision == "bf16")


def test_native_functions_are_off_after_a_step(monkeypatch):
    calls = []
    monkeypatch.setattr(training_step, "use_native", calls.append)
    training_step.training_step("resnet10t", 32, 2, form="native")()
    assert calls == [True, False]


def test_data_loading_is_measured(capsys):
    argv = ["--size", "80", "60", "--img-size", "32", "--images", "2", "--rounds", "1"]
    assert main([*argv, "--json"], script=data_loading) == 0
    rates = json.loads(capsys.readouterr().out)
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates.values())
    assert main(argv, script=data_loading) == 0
    assert "torchvision, crop and flip" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        (detection, "--pairs patnet_s", "--pairs patnet_s: give two models"),
        (detection, "--pairs patnet_s:fasternet_x", r"no model 'fasternet_x' \(did you mean 'fasternet_\w+'\?\)"),
        (detection, "--size 16 64", "--size 16 64: must be at least 32 32"),
        (detection, "--backends eagre", "did you mean 'eager'"),
        (detection, "--precision int8", "--precision int8: must be fp32, tf32"),
        (training_step, "--models patnet_t7", "did you mean 'patnet_t"),
        (training_step, "--models resnet10t.absent", r"a training step fails \(Invalid pretrained tag"),
        (training_step, "--models patnet_t0 --img-size 8 --batch-size 2", "--img-size 8 .* a training step fails"),
        (peers, "--families RepVit", "did you mean 'RepViT'"),
    ],
)
def test_bad_input_gets_an_error_message(script, argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv.split(), script=script) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["resnet10t", "patnet_t2"])  # of PATNet's some are requested already
def test_blocked_kernels_are_requested_for_all_convolutions(model, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(peers.BACKENDS, "openvino-blocked", peers.BlockedOpenVINO())
    network, images = fuse(timm.create_model(model).eval()), torch.rand(1, 3, 32, 32)
    info = ExportInfo(backend="openvino-blocked", img_size=(32, 32))
    peers.BACKENDS["openvino-blocked"].write(network, tmp_path / "network.xml", Request(info, images))
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    assert (tmp_path / "network.xml").read_text().count("primitives_priority") == convolutions
    run = prepare(network, images, backend="openvino-blocked", threads=1)
    with torch.no_grad():
        torch.testing.assert_close(run(images), network(images), rtol=1e-4, atol=1e-4)


def test_nncf_quantises_what_is_left_in_float32_otherwise(tmp_path):
    for package in ("openvino", "nncf", "onnxscript"):
        pytest.importorskip(package)

    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 16, 3)

        def forward(self, x):
            y = self.conv(x)
            return y * y.mean((2, 3), keepdim=True) + y

    images = torch.rand(4, 3, 16, 16)
    quantised = {}
    for backend in (peers.OpenVINO(), peers.NNCFOpenVINO()):
        info = ExportInfo(backend=backend.name, precision="int8", img_size=(16, 16))
        path = tmp_path / f"{backend.name}.xml"
        backend.write(Gated().eval(), path, Request(info, images[:1], images))
        quantised[backend.name] = path.read_text().count('type="FakeQuantize"')
        assert backend.load(path, threads=1)[0](images[:1]).shape == (1, 16, 14, 14)
    assert 1 <= quantised["openvino"] < quantised["openvino-nncf"]


class Predicting:
    """In place of `patnet predict`: writes a file of predictions, and after some time another one."""

    pid, returncode = os.getpid(), 0

    def __init__(self, command, **kwargs):
        self.out, self.polls = Path(command[command.index("--out") + 1]), 0
        self.out.mkdir()

    def poll(self):
        self.polls += 1
        if self.polls in (1, 3):
            names = [f"{self.polls} {i}" for i in range(1024)]
            columns = {"path": names, "label": names, "probability": [1.0] * 1024, "error": [None] * 1024}
            pq.write_table(pa.table(columns), self.out / f"part-{self.polls}.parquet")
        return 0 if self.polls > 3 else None


def test_a_second_measurement_at_scale_does_not_resume_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(scale.subprocess, "Popen", Predicting)
    args = argparse.Namespace(work=tmp_path, images=2048, kills=0, run="run", options=[], seed=0)
    for _ in range(2):
        found = scale.measure(args, "local", tmp_path, None)
        assert found["rows"] == found["once"] == 2048
        assert found["images_per_s"] == pytest.approx(1024 / 0.5, rel=0.5)


def test_bad_input_at_scale_gets_an_error_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "image.png").touch()
    monkeypatch.setattr(elpv, "solar_cells", lambda: [argparse.Namespace(path=tmp_path / "image.png")])
    for argv, message in (
        (["run", "--images", "2000"], "--images 2000: must be at least 2048"),
        (["nosuch", "--images", "2048", "--rates"], "patnet: nosuch: no such checkpoint"),
    ):
        monkeypatch.setattr(sys, "argv", ["scale.py", *argv, "--work", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(scale.__file__, run_name="__main__")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_networks_that_are_faster_and_about_as_accurate_are_listed():
    def row(model, family, top1, ms):
        return {"model": model, "family": family, "top1": top1, "median_ms": ms, "fastest": True}

    rows = [row("patnet_t0", "PATNet", 73.9, 8.0), row("patnet_t1", "PATNet", 78.1, 15.0)]
    rows += [row("a", "A", 73.6, 4.0), row("b", "B", 73.5, 4.0), row("c", "C", 78.2, 7.0), row("d", "D", 80.0, 16.0)]
    found = peers.better(rows)
    assert {patnet: [row["model"] for row in listed] for patnet, listed in found.items()} == {
        "patnet_t0": ["a", "c"],
        "patnet_t1": ["c"],
    }
