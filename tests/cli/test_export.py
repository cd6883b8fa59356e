import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import IterableDataset

from patnet.cli import export as command
from patnet.cli import main
from patnet.data import ImageFiles
from patnet.deploy import BACKENDS, load_exported
from patnet.deploy import export as exporting
from patnet.errors import InputError

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def onnx_file(run_dir, tmp_path_factory):
    """The run as an ONNX file."""
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("onnx") / "run.onnx"
    assert main(["export", str(run_dir), "--out", str(file), "--check-images", "4"]) == 0
    return file


@pytest.fixture
def here(run_dir, tmp_path, monkeypatch):
    """An empty working directory with links to a run and its images."""
    (tmp_path / "run").symlink_to(run_dir)
    (tmp_path / "images").symlink_to(run_dir.parent / "images")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_predictions(found, expected):
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        top = [{entry["label"]: entry["probability"] for entry in row["top"]} for row in (one, other)]
        assert top[0] == pytest.approx(top[1], abs=1e-4)


def test_an_exported_file_predicts_and_is_evaluated_as_its_run(run_dir, onnx_file, tmp_path, json_of, refused):
    images = run_dir.parent / "images"
    expected = json_of("predict", run_dir, images / "train")
    found = json_of("predict", onnx_file, images / "train", "--batch-size", "5", "--grid", tmp_path / "grid.png")
    assert len(expected) == 16
    assert_same_predictions(found, expected)
    assert (tmp_path / "grid.png").is_file()

    options = ["--data", images, "--split", "val", "--workers", "0"]
    expected = json_of("evaluate", run_dir, *options, "--out", tmp_path / "of_run")
    found = json_of("evaluate", onnx_file, *options, "--out", tmp_path / "of_file")
    assert set(found) == set(expected)
    assert (found["run"], found["images"]) == (str(onnx_file), 8)
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["calibration_error"] == pytest.approx(expected["calibration_error"], abs=1e-4)
    assert (tmp_path / "of_file" / "confusion_matrix.png").is_file()
    assert "--data" in refused("evaluate", onnx_file)
    assert "is a file in fp32; backend onnx does not have bf16" in refused(
        "predict", onnx_file, images / "train", "--precision", "bf16"
    )


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("net.pt2", ["--unfused"]),
        pytest.param("net.onnx", ["--dynamic-batch", "--dynamic-size"], marks=slow),
        pytest.param("net.onnx", ["--precision", "int8"], marks=slow),
        pytest.param("net.xml", ["--dynamic-batch"], marks=slow),
        pytest.param("net.xml", ["--precision", "int8"], marks=slow),
        pytest.param("net.pt2", ["--batch-size", "3"], marks=slow),
        pytest.param("net.pt2", ["--format", "aotinductor"], marks=slow),
    ],
)
def test_every_backend_predicts_as_the_run(here, json_of, out, options):
    for package in {".onnx": ["onnxruntime", "nncf"], ".xml": ["openvino", "nncf"]}.get(out[3:], []):
        pytest.importorskip(package)
    printed = json_of("export", "run", "--out", out, *options, "--check-images", "4")
    assert printed["path"] == out
    assert printed["bytes"] >= (here / out).stat().st_size
    info = printed["info"]
    assert (info["source"], info["label_names"]) == ("run", ["a", "b"])
    assert info == json.loads(load_exported(here / out).info.to_json())
    assert printed["agreement"]["images"] == 4
    assert printed["pretrained"]
    if "int8" in options:
        of_file = json_of("evaluate", out, "--data", "images", "--split", "val", "--out", "of-file", "--workers", "0")
        of_run = json_of("evaluate", "run", "--split", "val", "--out", "of-run", "--workers", "0")
        accuracies = {"network": pytest.approx(of_run["top1"]), "file": pytest.approx(of_file["top1"])}
        assert printed["accuracy"] == {"split": "val", "images": 8, **accuracies}
    else:
        assert printed["accuracy"] is None
        found, expected = (json_of("predict", name, "images/train") for name in (out, "run"))
        assert_same_predictions(found, expected)
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_what_is_printed_describes_the_file(here, capfd, json_of):
    assert main(["export", "run", "--out", "net.pt2", "--img-size", "64", "96", "--batch-size", "2"]) == 0
    out, _ = capfd.readouterr()
    for text in ("net.pt2: torch, fp32, fused", "2 image(s) of 3 channel(s) and 64x96 px", "of 8 real images"):
        assert text in out
    assert load_exported("net.pt2").info.data_config["input_size"] == [3, 64, 96]
    assert len(json_of("predict", "net.pt2", "images/train/a")) == 8


@pytest.mark.parametrize("data", ["images", "images/train/a"])
def test_a_checkpoint_is_exported_with_the_images_given(checkpoint_dir, here, json_of, refused, data):
    assert "give --data" in refused("export", checkpoint_dir, "--out", "net.xml", "--precision", "int8")
    options = ["--out", "net.pt2", "--img-size", "64", "--data", data, "--check-images", "3"]
    printed = json_of("export", checkpoint_dir, *options)
    assert printed["parameter_bytes"] <= printed["bytes"]
    assert printed["agreement"]["images"] == 3
    info = printed["info"]
    assert (info["in_chans"], info["img_size"], info["batch_size"], info["fused"]) == (3, [64, 64], 1, True)
    assert info["label_names"] == ["a", "b", "c"]
    assert {"mean", "std", "interpolation", "crop_pct"} <= set(info["data_config"])


@slow
def test_a_model_of_timm_is_exported_with_random_weights(here, capfd):
    assert main(["export", "patnet_t0", "--out", "t0.pt2", "--img-size", "64", "--data", "images"]) == 0
    out, err = capfd.readouterr()
    assert "patnet_t0: has random weights" in err
    assert "t0.pt2: torch, fp32, fused" in out
    assert load_exported("t0.pt2").info.model == "patnet_t0"
    assert main(["predict", "t0.pt2", "images"]) == 2
    assert "has random weights" in capfd.readouterr().err


def test_without_images_an_error_message_names_data(checkpoint_dir, here, refused, monkeypatch):
    def missing(name, **options):
        raise InputError("elpv_dataset is not installed")

    monkeypatch.setattr(command, "open_data", missing)
    said = refused("export", checkpoint_dir, "--out", "net.pt2")
    assert "no real images to check the file with (elpv_dataset is not installed); choose some with --data" in said
    said = refused("export", checkpoint_dir, "--out", "net.pt2", "--data", "elpv")
    assert said == "patnet: elpv_dataset is not installed\n"


def test_sampled_images_are_evenly_spaced():
    class Stream(IterableDataset):  # without length and end
        def __iter__(self):
            return ((i, "label") for i in itertools.count())

    numbers = [(i, "label") for i in range(10)]
    for count, expected in {5: [0, 2, 4, 6, 8], 1: [0], 3: [0, 3, 6], 50: list(range(10))}.items():
        assert command.sample_images(numbers, count, torch.tensor).tolist() == expected
    assert command.sample_images(Stream(), 3, torch.tensor).tolist() == [0, 1, 2]


def test_a_stream_that_is_empty_or_damaged_gets_an_error_message():
    class Stream(IterableDataset):
        def __init__(self, *items):
            self.items = items

        def __iter__(self):
            for item in self.items:
                if item is None:
                    raise OSError("truncated")
                yield item, "label"

    assert command.sample_images(Stream(1, 2, None), 2, torch.tensor).tolist() == [1, 2]
    with pytest.raises(InputError, match=r"image 1 of the stream cannot be read \(truncated\)"):
        command.sample_images(Stream(1, None), 2, torch.tensor)
    with pytest.raises(InputError, match="none of the 2 images"):
        command.sample_images(Stream(), 2, torch.tensor)


def test_images_that_cannot_be_read_are_not_sampled(images_dir):
    files = sorted(images_dir(a=3).rglob("*.png"))
    files[1].write_bytes(b"not an image")
    dataset = ImageFiles([(file, 0) for file in files])
    assert len(command.sample_images(dataset, 3, lambda image: torch.zeros(1))) == 2
    with pytest.raises(InputError, match=r"none of the 1 images .* can be read"):
        command.sample_images(dataset.subset([1]), 3, lambda image: torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out empty/x.onnx --format onxx", "did you mean 'onnx'"),
        ("--out empty/x.onnx --precision fp8", "no precision 'fp8'"),
        ("--out empty/x.xml --format onnx", "must be .onnx"),
        ("--out empty/x.onnx --format aotinductor", "must be .pt2"),
        ("--out empty/x", "must be .onnx"),
        ("--out images/train/a/00.png/x.onnx", "cannot be written"),
        ("--out taken.onnx", "is a directory"),
        ("--out empty/x.onnx --img-size 64 16", "at least 32x32"),
        ("--out empty/x.onnx --img-size 64 64 64", "a side, or a height and a width"),
        ("--out empty/x.onnx --dynamic-size --img-size 32", "at least 64x64"),
        ("--out empty/x.pt2 --precision int8", "torch has no precision 'int8'"),
        ("--out empty/x.onnx --precision int8 --batch-size 64", "int8 needs at least 64 calibration images"),
        ("--out empty/x.onnx --dynamic-batch --batch-size 2", "--batch-size 2 and --dynamic-batch: choose one"),
        ("--out empty/x.onnx --calibration-images 9", "--calibration-images: belongs to --precision int8"),
        ("--out empty/x.onnx --data elpw", "elpw"),
    ],
)
def test_bad_input_gets_an_error_message_and_leaves_nothing(here, refused, options, message):
    (here / "taken.onnx").mkdir()
    before = sorted(here.rglob("*"))
    assert message in refused("export", "run", *options.split())
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("run", ["patnet_t9", "absent/run", "empty", "other.onnx"])
def test_what_is_no_network_is_named(here, refused, run):
    (here / "other.onnx").touch()
    assert run[:8] in refused("export", run, "--out", "empty/x.onnx")


def test_a_runtime_that_is_not_installed_is_named(here, onnx_file, refused, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "patnet.errors.find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    for argv in (["export", "run", "--out", "x.onnx"], ["predict", onnx_file, "images"]):
        assert "onnxruntime, which is not installed: pip install 'patnet[onnx]'" in refused(*argv)
    assert not (here / "x.onnx").exists()


def test_a_file_that_disagrees_leaves_an_earlier_one(here, refused, monkeypatch):
    (here / "net.pt2").write_text("an earlier file")
    monkeypatch.setitem(sys.modules[exporting.__module__].TOLERANCES, "fp16", (1e-9, 1.0))
    said = refused("export", "run", "--precision", "fp16", "--out", "net.pt2")
    assert "does not agree with the network" in said
    assert "nothing was written" in said
    assert (here / "net.pt2").read_text() == "an earlier file"
    assert not list(here.glob(".*"))


def test_ctrl_c_leaves_nothing(here, capfd, monkeypatch):
    def stopped(_, path, request):
        path.write_text("half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(BACKENDS["torch"], "write", stopped)
    before = sorted(here.rglob("*"))
    assert main(["export", "run", "--out", "net.pt2"]) == 130
    assert capfd.readouterr().err.endswith("patnet: interrupted\n")
    assert sorted(here.rglob("*")) == before


@slow
def test_ctrl_c_during_tracing_leaves_nothing(here):
    pytest.importorskip("onnxruntime")
    before = sorted(here.rglob("*"))
    argv = [sys.executable, "-m", "patnet", "export", "run", "--out", "net.onnx"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    while not list(here.glob(".writing-*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_files_that_cannot_be_used_are_refused(here, onnx_file, refused):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(onnx_file)
    del proto.metadata_props[:]
    onnx.save(proto, "plain.onnx")
    onnx.helper.set_model_props(proto, {"patnet": "no JSON"})
    onnx.save(proto, "foreign.onnx")
    (here / "cut.onnx").write_bytes(onnx_file.read_bytes()[:-5000])
    for name in ("empty.onnx", "empty.xml", "empty.pt2"):
        (here / name).touch()
    for name, message in (
        ("plain.onnx", "has no class names and no preprocessing; export it with patnet export"),
        ("foreign.onnx", "foreign.onnx: its metadata is not that of an exported network"),
        ("cut.onnx", "cut.onnx: ONNX Runtime cannot load it"),
        ("absent.onnx", "absent.onnx"),
        ("empty.onnx", "empty.onnx"),
        ("empty.xml", "empty.xml"),
        ("empty.pt2", "empty.pt2"),
    ):
        assert message in refused("predict", name, "images/train")
    assert "is an exported file" in refused("export", onnx_file, "--out", "again.onnx")
    assert "is an exported file" in refused("bench", onnx_file)
