import json
import re
from functools import partial

import pytest

from patnet.benchmark.detection import measure_detection
from patnet.benchmark.detection_report import draw_detection, write_detection
from patnet.cli import main
from patnet.cli.detect import bench
from patnet.detection import build
from patnet.detection.evaluation_time import measure_evaluation

PAIR = ("patnet_t0", "fasternet_t0")


@pytest.fixture(scope="module")
def measured():
    """The smallest pair in small pictures."""
    return measure_detection(build, [PAIR], height=64, width=96, rounds=3, command="patnet detect bench")


def test_backbones_in_each_runtime_and_in_the_fastest(measured):
    assert measured["complete"]
    assert measured["left_out"] == []
    backbones = [row for row in measured["rows"] if row["part"] == "backbone"]
    runtimes = {row["runtime"] for row in backbones}
    assert "eager" in runtimes
    assert [row["model"] for row in backbones] == list(PAIR) * len(runtimes)
    assert [sum(row["fastest"] for row in backbones if row["model"] == model) for model in PAIR] == [1, 1]
    assert all(row["runs"] >= 3 and 0 < row["median_ms"] <= row["p95_ms"] for row in backbones)
    ratios = [r for r in measured["ratios"] if r["part"] == "backbone"]
    assert {r["numerator"]["runtime"] for r in ratios if r["numerator"] == {**r["denominator"], "model": PAIR[0]}} == (
        runtimes
    )
    for ratio in ratios:
        first, second = (
            next(row for row in backbones if row["model"] == side["model"] and row["runtime"] == side["runtime"])
            for side in (ratio["numerator"], ratio["denominator"])
        )
        assert ratio["ratio"] == pytest.approx(first["median_ms"] / second["median_ms"], abs=2e-3)
        assert ratio["fastest"] == (first["fastest"] and second["fastest"])
    assert sum(r["fastest"] for r in ratios) == 1


def test_detectors_have_the_same_work(measured):
    first, second = (row for row in measured["rows"] if row["part"] == "mask_rcnn")
    assert (first["model"], second["model"]) == PAIR
    assert first["objects"] == second["objects"] == 100
    assert [r["rounds"] for r in measured["ratios"] if r["part"] == "mask_rcnn"] == [3]


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_other_detectors(detector):
    found = measure_detection(
        build, [("patnet_t0", "resnet10t")], detector=detector, height=64, width=96, rounds=1, runtimes=["eager"]
    )
    assert [row["objects"] for row in found["rows"]] == [None, None, 100, 100]


def test_files(measured, tmp_path):
    files = write_detection(measured, tmp_path)
    assert [file.name for file in files] == ["detection-speed.json", "detection-speed.md", "detection-speed.png"]
    assert json.loads(files[0].read_text()) == measured
    text = files[1].read_text()
    assert "`patnet detect bench`" in text
    assert f"{measured['ratios'][0]['ratio']:.3f}" in text
    assert "64x96 px" in text


def test_an_interruption_keeps_what_was_measured(tmp_path):
    def interrupt(line):
        if "fasternet_t1" in line:
            raise KeyboardInterrupt

    found = measure_detection(
        build,
        [PAIR, ("patnet_t1", "fasternet_t1")],
        height=64,
        width=64,
        rounds=1,
        runtimes=["eager"],
        backbone_only=True,
        say=interrupt,
    )
    assert not found["complete"]
    assert [row["model"] for row in found["rows"]] == list(PAIR)
    write_detection(found, tmp_path)
    found["rows"] = []
    assert draw_detection(found) is None


def test_command_line(tmp_path, capsys):
    command = ["detect", "bench", "--size", "64", "64", "--rounds", "1", "--runtimes", "eager", "--backbone_only"]
    assert main([*command, "--pairs", "patnet_t0:resnet10t", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["ratios"]) == 1
    assert json.loads((tmp_path / "detection-speed.json").read_text()) == found
    assert main([*command, "--pairs", "patnet_t0:resnet10t", "--out", str(tmp_path)]) == 0
    assert "resnet10t" in capsys.readouterr().out


def test_evaluation_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure_evaluation", partial(measure_evaluation, 4, 3, classes=2))
    assert main(["detect", "bench", "--evaluation", "--compare"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"mask +\d+\.\d s, by pycocotools", said)
    assert "4 random pictures, 3 detections in each, 2 classes" in said
    assert main(["detect", "bench", "--evaluation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "patnet_s"], "--pairs patnet_s: give two models"),
        (["--pairs", "patnet_s:fasternet_x"], r"no model 'fasternet_x' \(did you mean 'fasternet_\w+'\?\)"),
        (["--size", "16", "64"], "--size 16 64: both must be at least 32 px"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--compare"], "--compare: is for --evaluation"),
        (["--runtimes", "eagre"], "--runtimes eagre: unknown"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, options, message):
    assert main(["detect", "bench", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
