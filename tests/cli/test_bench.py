import json
import re
import signal
import sys

import pytest
import torch

from patnet.bench import timing
from patnet.cli import bench, main
from patnet.deploy.backend import Profile

FOUND = Profile({}, "fp32", "fp32")
QUICK = ("--backends", "eager", "--img-size", "32", "--seconds", "0.05")


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.005)


def test_a_measurement_is_printed_and_written(tmp_path, capsys):
    out = tmp_path / "bench"
    assert main(["bench", "patnet_t0", "fasternet_t0", *QUICK, "--out", str(out), "--name", "first"]) == 0
    printed, progress = capsys.readouterr()
    assert re.search(r"patnet_t0 +PyTorch eager.* fp32 .*of +fasternet_t0", printed)
    assert "preparing" in progress
    result = json.loads((out / "first.json").read_text())
    assert result["complete"]
    assert (out / "first.csv").is_file()
    assert (out / "first.md").is_file()
    assert (out / "images" / "first.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_json_and_signals(tmp_path, monkeypatch, capsys, number):
    def interrupted(*args, **kwargs):
        signal.raise_signal(number)

    monkeypatch.setattr(sys.modules[bench.measure.__module__], "interleave", interrupted)
    (tmp_path / "benchmarks.json").write_text("earlier")
    monkeypatch.setattr(sys, "argv", ["patnet", "bench", "patnet_t0", *QUICK, "--out", str(tmp_path), "--json"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert json.loads(capsys.readouterr().out)["incomplete_because"] == "interrupted"
    assert (tmp_path / "benchmarks.json").read_text() == "earlier"


def test_a_profile_obeys_the_precision_and_says_what_was_computed_in(capsys):
    pytest.importorskip("openvino")
    argv = ["bench", "patnet_t0", "--profile", "--img-size", "32", "--backends"]
    assert main([*argv, "openvino", "--precision", "fp32", "fp16", "--json"]) == 0
    profiles = json.loads(capsys.readouterr().out)
    assert [(p["precision"], p["computed_in"]) for p in profiles] == [("fp32", "fp32"), ("fp16", "fp32")]
    assert any(name.startswith("Convolution (") for name in profiles[0]["operations"])
    assert main([*argv, "eager", "--precision", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert (
        "patnet_t0, fused, PyTorch eager, contiguous, 32 px, batch size 1, threads 1, bf16 (computed in bf16)"
        in printed
    )
    # Without instructions for it PyTorch has a convolution of its own.
    assert re.search(r"aten::(mkldnn_convolution|_slow_conv2d_forward) +\d+\.\d+ +\d+\.\d +\d+\.\d", printed)


def test_a_profile_obeys_the_memory_format(monkeypatch):
    profiled = []
    monkeypatch.setattr(bench, "profile", lambda network, images, **_: profiled.append((network, images)) or FOUND)
    for memory_format, layout in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
        argv = ["bench", "patnet_t0", "--profile", "--backends", "eager", "--img-size", "32", "--json"]
        assert main([*argv, "--memory-format", memory_format]) == 0
        network, images = profiled.pop()
        weight = next(p for p in network.parameters() if p.dim() == 4 and min(p.shape) > 1)
        assert weight.is_contiguous(memory_format=layout)
        assert images.is_contiguous(memory_format=layout)


def test_a_network_that_cannot_be_profiled_gets_an_error_message(monkeypatch, refused):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(bench, "profile", fail)
    said = refused("bench", "patnet_t0", "--profile", "--backends", "eager", "--img-size", "32")
    assert "patnet_t0: backend eager cannot profile it in fp32 (no compiler)" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("patnet_t9", "patnet_t"),
        ("--backends opnvino", "did you mean 'openvino'"),
        ("--precision fp23", "did you mean 'fp32'"),
        ("--precision int8 --backends eager", "--precision int8: not available in eager"),
        ("--threads 9999", "cores"),
        ("patnet_t0 --profile --backends eager --img-size 16", "--img-size 16: the network does not take images"),
        ("patnet_t0 --out file/here", "cannot be written"),
        ("resnet10t.absent", "resnet10t.absent: timm cannot make it (Invalid pretrained tag"),
        ("--backends eager torch --precision tf32", "--backends torch: has none of --precision tf32; leave it out"),
        ("--profile --backends eager --seconds 5", "--seconds: belongs to --no-profile"),
    ],
)
def test_bad_input_gets_an_error_message(argv, message, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules[bench.measure.__module__], "interleave", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    assert message in refused("bench", *argv.split())
    assert sorted(path.name for path in tmp_path.iterdir()) in (["file"], ["file", "runs"])
