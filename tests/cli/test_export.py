import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from patnet.cli import export as command
from patnet.cli import main
from patnet.deploy import BACKENDS, load_exported
from patnet.deploy import export as exporting
from patnet.errors import InputError

slow = pytest.mark.slow


class Numbers(Dataset):
    """Image i is the number i."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return i, "label"


class Stream(IterableDataset):
    """The same, without length and end."""

    def __iter__(self):
        i = 0
        while True:
            yield i, "label"
            i += 1


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


def refused(capfd, *argv):
    """The error message of bad input: one line, nothing on standard output."""
    code = main(list(map(str, argv)))
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("patnet: "), err
    assert err.count("\n") == 1, err
    return err


def json_of(capfd, *argv):
    """What `patnet ... --json` prints."""
    capfd.readouterr()
    code = main([*map(str, argv), "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


def assert_same_predictions(found, expected):
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        top = [{entry["label"]: entry["probability"] for entry in row["top"]} for row in (one, other)]
        assert top[0] == pytest.approx(top[1], abs=1e-4)


def test_an_exported_file_predicts_as_its_run(run_dir, onnx_file, tmp_path, capfd):
    images = run_dir.parent / "images" / "train"
    expected = json_of(capfd, "predict", run_dir, images)
    assert len(expected) == 16
    assert_same_predictions(json_of(capfd, "predict", onnx_file, images, "--batch-size", "5"), expected)
    assert main(["predict", str(onnx_file), str(images / "a"), "--grid", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").is_file()


def test_an_exported_file_is_evaluated_as_its_run(run_dir, onnx_file, tmp_path, capfd):
    options = ["--data", run_dir.parent / "images", "--split", "val", "--workers", "0"]
    expected = json_of(capfd, "evaluate", run_dir, *options, "--out", tmp_path / "of_run")
    found = json_of(capfd, "evaluate", onnx_file, *options, "--out", tmp_path / "of_file")
    assert found["run"] == str(onnx_file)
    assert set(found) == set(expected)
    assert found["images"] == 8
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["calibration_error"] == pytest.approx(expected["calibration_error"], abs=1e-4)
    assert (tmp_path / "of_file" / "confusion_matrix.png").is_file()
    assert "--data" in refused(capfd, "evaluate", onnx_file)


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
def test_every_backend_predicts_as_the_run(here, capfd, out, options):
    for package in {".onnx": ["onnxruntime", "nncf"], ".xml": ["openvino", "nncf"]}.get(out[3:], []):
        pytest.importorskip(package)
    printed = json_of(capfd, "export", "run", "--out", out, *options, "--check-images", "4")
    assert printed["path"] == out
    assert printed["bytes"] >= (here / out).stat().st_size
    info = printed["info"]
    assert (info["source"], info["label_names"]) == ("run", ["a", "b"])
    assert info == json.loads(load_exported(here / out).info.to_json())
    assert printed["agreement"]["images"] == 4
    assert printed["pretrained"]
    if "int8" not in options:
        found, expected = (json_of(capfd, "predict", name, "images/train") for name in (out, "run"))
        assert_same_predictions(found, expected)
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_what_is_printed_describes_the_file(here, capfd):
    assert main(["export", "run", "--out", "net.pt2", "--img-size", "64", "96", "--batch-size", "2"]) == 0
    out, _ = capfd.readouterr()
    assert "net.pt2: torch, fp32, fused" in out
    assert "2 image(s) of 3 channel(s) and 64x96 px" in out
    assert "times the parameters" in out
    assert "of 8 real images" in out
    assert load_exported("net.pt2").info.data_config["input_size"] == [3, 64, 96]
    assert len(json_of(capfd, "predict", "net.pt2", "images/train/a")) == 8


def test_a_checkpoint_is_exported_with_the_images_given(checkpoint_dir, here, capfd):
    options = ["--out", "net.pt2", "--img-size", "64", "--data", "images", "--check-images", "3"]
    printed = json_of(capfd, "export", checkpoint_dir, *options)
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


def test_without_images_an_error_message_names_data(checkpoint_dir, here, capfd, monkeypatch):
    def missing(name, **options):
        raise InputError("elpv_dataset is not installed")

    monkeypatch.setattr(command, "open_data", missing)
    said = refused(capfd, "export", checkpoint_dir, "--out", "net.pt2")
    assert "no real images to check the file with (elpv_dataset is not installed); choose some with --data" in said
    said = refused(capfd, "export", checkpoint_dir, "--out", "net.pt2", "--data", "elpv")
    assert said == "patnet: elpv_dataset is not installed\n"


@pytest.mark.parametrize(
    ("dataset", "count", "expected"),
    [
        (Numbers(), 5, [0, 2, 4, 6, 8]),
        (Numbers(), 1, [0]),
        (Numbers(), 3, [0, 3, 6]),
        (Numbers(), 50, list(range(10))),
        (Stream(), 3, [0, 1, 2]),
    ],
)
def test_sampled_images_are_evenly_spaced(dataset, count, expected):
    assert command.sample_images(dataset, count, torch.tensor).tolist() == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("run", "out"),
        ("run --out empty/x.onnx --format onxx", "did you mean 'onnx'"),
        ("run --out empty/x.onnx --precision fp8", "no precision 'fp8'"),
        ("run --out empty/x.onnx --presicion fp16", "did you mean '--precision'"),
        ("patnet_t9 --out empty/x.onnx", "patnet_t"),
        ("absent/run --out empty/x.onnx", "absent/run"),
        ("empty --out empty/x.onnx", "empty"),
        ("run --out empty/x.xml --format onnx", "must be .onnx"),
        ("run --out empty/x.onnx --format aotinductor", "must be .pt2"),
        ("run --out empty/x", "must be .onnx"),
        ("run --out images/train/a/00.png/x.onnx", "cannot be written"),
        ("run --out taken.onnx", "is a directory"),
        ("run --out empty/x.onnx --img-size 16", "at least 32x32"),
        ("run --out empty/x.onnx --img-size 64 16", "at least 32x32"),
        ("run --out empty/x.onnx --img-size 64 64 64", "a side, or a height and a width"),
        ("run --out empty/x.onnx --dynamic-size --img-size 32", "at least 64x64"),
        ("run --out empty/x.onnx --batch-size 0", "--batch-size"),
        ("run --out empty/x.onnx --batch-size many", "--batch-size"),
        ("run --out empty/x.onnx --check-images 0", "--check-images"),
        ("run --out empty/x.onnx --calibration-images -1", "--calibration-images"),
        ("run --out empty/x.pt2 --precision int8", "torch has no precision 'int8'"),
        ("run --out empty/x.onnx --precision int8 --batch-size 64", "int8 needs at least 64 calibration images"),
        ("run --out empty/x.onnx --data elpw", "elpw"),
        ("run --out empty/x.onnx --data absent/folder", "absent/folder"),
        ("other.onnx --out empty/x.onnx", "other.onnx"),
        ("run one --out empty/x.onnx", "one"),
    ],
)
def test_bad_input_gets_an_error_message_and_leaves_nothing(here, capfd, argv, message):
    (here / "taken.onnx").mkdir()
    (here / "other.onnx").touch()
    before = sorted(here.rglob("*"))
    assert message in refused(capfd, "export", *argv.split())
    assert sorted(here.rglob("*")) == before


def test_a_runtime_that_is_not_installed_is_named(here, onnx_file, capfd, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "patnet.errors.find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    for argv in (["export", "run", "--out", "x.onnx"], ["predict", onnx_file, "images"]):
        assert "onnxruntime, which is not installed: pip install 'patnet[onnx]'" in refused(capfd, *argv)
    assert not (here / "x.onnx").exists()


def test_a_file_that_disagrees_leaves_an_earlier_one(here, capfd, monkeypatch):
    (here / "net.pt2").write_text("an earlier file")
    monkeypatch.setitem(sys.modules[exporting.__module__].TOLERANCES, "fp16", (1e-9, 1.0))
    said = refused(capfd, "export", "run", "--precision", "fp16", "--out", "net.pt2")
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


def test_files_that_cannot_be_used_are_refused(here, onnx_file, capfd):
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
        ("foreign.onnx", "foreign.onnx: "),
        ("cut.onnx", "cut.onnx: ONNX Runtime cannot load it"),
        ("absent.onnx", "absent.onnx"),
        ("empty.onnx", "empty.onnx"),
        ("empty.xml", "empty.xml"),
        ("empty.pt2", "empty.pt2"),
    ):
        assert message in refused(capfd, "predict", name, "images/train")
    assert "is an exported file" in refused(capfd, "export", onnx_file, "--out", "again.onnx")
