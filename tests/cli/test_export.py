import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from patnet.cli import main
from patnet.deploy import FORMATS, load_exported

slow = pytest.mark.slow
TRAIN = (
    *("--size", "64", "--epochs", "1", "--warmup_epochs", "0", "--batch_size", "6", "--workers", "0"),
    *("--accelerator", "cpu", "--val_fraction", "0.25"),
)
SMALL = (
    *("--model_args.embed_dim", "8", "--model_args.depths", "[1,1]", "--model_args.num_heads", "2"),
    *("--model_args.mixers", "[pat_ch,pat_sf]", "--model_args.feature_dim", "16"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a data set `photos` and the run `run` of a tiny network trained on it."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("trained")
    for name in ("dark", "light"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 255, (72, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels // (3 if name == "dark" else 1)).save(root / "photos" / name / f"{i}.png")
    assert main(["train", "--data", str(root / "photos"), "--out", str(root / "run"), *TRAIN, *SMALL]) == 0
    return root


@pytest.fixture(scope="module")
def onnx_file(root):
    """The run as ONNX."""
    pytest.importorskip("onnxruntime")
    assert main(["export", str(root / "run"), "--out", str(root / "run.onnx"), "--check-pictures", "4"]) == 0
    return root / "run.onnx"


@pytest.fixture
def here(root, tmp_path, monkeypatch):
    """An empty working directory beside which `run` and `photos` are."""
    for name in ("run", "photos"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capfd, *argv):
    """What `patnet` says of bad input: one sentence, nothing on standard output."""
    code = main(list(map(str, argv)))
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("patnet: "), err
    assert err.count("\n") == 1, err
    return err


def answers(capfd, *argv):
    """What `patnet ... --json` prints."""
    capfd.readouterr()
    code = main([*map(str, argv), "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return json.loads(out)


def assert_same_answers(found, expected):
    assert [answer["path"] for answer in found] == [answer["path"] for answer in expected]
    for one, other in zip(found, expected, strict=True):
        ranks = [{entry["label"]: entry["probability"] for entry in answer["top"]} for answer in (one, other)]
        assert ranks[0] == pytest.approx(ranks[1], abs=1e-4)
        gap = abs(other["top"][0]["probability"] - other["top"][1]["probability"])
        assert one["label"] == other["label"] or gap < 1e-4
        assert set(one) == set(other)


def test_an_exported_file_predicts_as_its_run(root, onnx_file, capfd):
    pictures = root / "photos"
    expected = answers(capfd, "predict", root / "run", pictures)
    assert len(expected) == 12
    assert_same_answers(answers(capfd, "predict", onnx_file, pictures), expected)
    assert_same_answers(answers(capfd, "predict", onnx_file, pictures, "--batch-size", "5", "--workers=1"), expected)
    assert main(["predict", str(onnx_file), str(pictures / "dark" / "0.png"), "--sheet", str(root / "sheet.png")]) == 0
    assert (root / "sheet.png").is_file()
    assert "run.onnx" not in capfd.readouterr().err


def test_an_exported_file_is_evaluated_as_its_run(root, onnx_file, tmp_path, capfd):
    for part in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / part).symlink_to(root / "photos")
    options = ["--data", tmp_path / "data", "--workers", "0"]
    expected = answers(capfd, "evaluate", root / "run", *options, "--out", tmp_path / "of_run", "--split", "val")
    found = answers(capfd, "evaluate", onnx_file, *options, "--out", tmp_path / "of_file", "--split", "val")
    assert found["run"] == str(onnx_file)
    assert set(found) == set(expected)
    assert found["pictures"] == 12
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    assert found["calibration_error"] == pytest.approx(expected["calibration_error"], abs=1e-4)
    for file in ("confusion_matrix.png", "mistakes.png", "metrics.json", "per_class.csv"):
        assert (tmp_path / "of_file" / file).is_file()
    assert "give --data and --out" in refused(capfd, "evaluate", onnx_file)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("torch", ["--unfused"]),
        pytest.param("onnx", ["--dynamic-batch", "--dynamic-size"], marks=slow),
        pytest.param("onnx", ["--precision", "int8"], marks=slow),
        pytest.param("openvino", ["--dynamic-batch"], marks=slow),
        pytest.param("openvino", ["--precision", "int8"], marks=slow),
        pytest.param("torch", ["--batch", "3"], marks=slow),
        pytest.param("aotinductor", [], marks=slow),
    ],
)
def test_every_format_predicts_as_its_run(here, capfd, format, options):
    if format in ("onnx", "openvino"):
        pytest.importorskip({"onnx": "onnxruntime"}.get(format, format))
    if "int8" in options:
        pytest.importorskip("nncf")
    out = f"net{FORMATS[format].suffix}"
    printed = answers(capfd, "export", "run", "--format", format, "--out", out, *options, "--check_pictures", "4")
    assert printed["path"] == out
    assert printed["bytes"] >= (here / out).stat().st_size
    assert printed["info"]["source"] == "run"
    assert printed["info"]["label_names"] == ["dark", "light"]
    assert printed["info"] == json.loads(load_exported(here / out).info.to_json())
    assert printed["info"]["versions"]["patnet"]
    assert printed["agreement"]["pictures"] == 3  # the run's validation pictures
    assert not printed["untrained"]
    found, expected = (answers(capfd, "predict", name, "photos") for name in (out, "run"))
    if "int8" in options:
        assert [a["path"] for a in found] == [a["path"] for a in expected]
    else:
        assert_same_answers(found, expected)
    assert sorted(p.name for p in here.iterdir() if p.name.startswith(".")) == []


def test_what_is_printed_tells_of_the_file(here, capfd):
    assert main(["export", "run", "--format", "torch", "--out", "net.pt2", "--size", "64", "96", "--batch", "2"]) == 0
    out, _ = capfd.readouterr()
    assert "net.pt2: torch, fp32, fused" in out
    assert "2 picture(s) of 3 channel(s) and 64x96 px" in out
    assert "times the parameters" in out
    assert "of 3 real pictures" in out
    assert load_exported("net.pt2").info.data_config["input_size"] == [3, 64, 96]
    assert len(answers(capfd, "predict", "net.pt2", "photos/dark")) == 6


@slow
def test_a_model_of_timms_is_exported_untrained(here, capfd):
    options = ["--format", "torch", "--out", "t0.pt2", "--size", "64", "--data", "photos"]
    assert main(["export", "patnet_t0", *options]) == 0
    out, err = capfd.readouterr()
    assert "patnet_t0: no weights are published, so these are a new network's, untrained" in err
    assert "t0.pt2: torch, fp32, fused" in out
    assert load_exported("t0.pt2").info.model == "patnet_t0"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("run", "out"),
        ("run --out empty/x.onnx --format onxx", "did you mean 'onnx'"),
        ("run --out empty/x.onnx --precision fp8", "precision"),
        ("run --out empty/x.onnx --presicion fp16", "did you mean '--precision'"),
        ("patnet_t9 --out empty/x.onnx", "did you mean 'patnet_t"),
        ("absent/run --out empty/x.onnx", "no such checkpoint"),
        ("empty --out empty/x.onnx", "no model.safetensors"),
        ("run --out empty/x.xml", "must end in .onnx"),
        ("run --out empty/x.onnx --format aotinductor", "must end in .pt2"),
        ("run --out empty/x --format torch", "must end in .pt2"),
        ("run --out empty/absent/x.onnx", "empty/absent: cannot be written (No such file or directory)"),
        ("run --out photos/dark/0.png/x.onnx", "cannot be written (Not a directory)"),
        ("run --out taken.onnx", "is a folder"),
        ("run --out empty/x.onnx --size 16", "at least 32x32"),
        ("run --out empty/x.onnx --size 64 16", "at least 32x32"),
        ("run --out empty/x.onnx --size 64 64 64", "a side, or a height and a width"),
        ("run --out empty/x.onnx --dynamic-size --size 32", "at least 64x64"),
        ("run --out empty/x.onnx --batch 0", "at least 1"),
        ("run --out empty/x.onnx --batch -2", "at least 1"),
        ("run --out empty/x.onnx --batch many", "batch"),
        ("run --out empty/x.onnx --check-pictures 0", "at least 1"),
        ("run --out empty/x.pt2 --format torch --precision int8", "torch is not written in int8"),
        ("run --out empty/x.onnx --precision int8 --batch 64", "int8 needs at least 64 pictures"),
        ("run --out empty/x.onnx --data elpw", "did you mean 'elpv'"),
        ("run --out empty/x.onnx --data absent/folder", "no such folder"),
        ("other.onnx --out empty/x.onnx", "is exported already"),
        ("run one --out empty/x.onnx", "one word too many"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(here, capfd, argv, message):
    (here / "taken.onnx").mkdir()
    (here / "other.onnx").touch()
    before = sorted(here.rglob("*"))
    said = refused(capfd, "export", *argv.split())
    assert message in said
    assert sorted(here.rglob("*")) == before


def test_a_runtime_that_is_not_installed_is_named(here, onnx_file, capfd, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    for argv in (["export", "run", "--out", "x.onnx"], ["predict", onnx_file, "photos"]):
        assert "onnxruntime, not installed here: pip install 'patnet[onnx]'" in refused(capfd, *argv)
    assert not (here / "x.onnx").exists()


def test_a_file_that_disagrees_leaves_an_earlier_one(here, capfd, monkeypatch):
    (here / "net.pt2").write_text("an earlier file")
    monkeypatch.setitem(sys.modules["patnet.deploy.export"].TOLERANCES, "fp16", (1e-9, 1.0))
    said = refused(capfd, "export", "run", "--format", "torch", "--precision", "fp16", "--out", "net.pt2")
    assert "does not agree with the network" in said
    assert "nothing was written" in said
    assert (here / "net.pt2").read_text() == "an earlier file"
    assert not list(here.glob(".*"))


def test_ctrl_c_leaves_nothing(here, capfd, monkeypatch):
    def stopped(_, path, request):
        path.write_text("half a file")
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, "torch", FORMATS["torch"]._replace(write=stopped))
    before = sorted(here.rglob("*"))
    assert main(["export", "run", "--format", "torch", "--out", "net.pt2"]) == 130
    assert capfd.readouterr().err.endswith("patnet: interrupted\n")
    assert sorted(here.rglob("*")) == before


@slow
def test_ctrl_c_while_it_is_traced_leaves_nothing(here):
    pytest.importorskip("onnxruntime")
    before = sorted(here.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "patnet", "export", "run", "--out", "net.onnx"], stderr=subprocess.PIPE, text=True
    )
    while not list(here.glob(".exporting-*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_files_that_cannot_be_used_are_refused(here, onnx_file, capfd):
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(onnx_file)
    del proto.metadata_props[:]
    onnx.save(proto, "plain.onnx")
    said = refused(capfd, "predict", "plain.onnx", "photos")
    assert "plain.onnx: says nothing of its labels and preprocessing; export it with patnet export" in said
    onnx.helper.set_model_props(proto, {"patnet": "no JSON"})
    onnx.save(proto, "foreign.onnx")
    assert "foreign.onnx: " in refused(capfd, "predict", "foreign.onnx", "photos")
    (here / "cut.onnx").write_bytes(onnx_file.read_bytes()[:-5000])
    assert "cut.onnx: ONNX Runtime cannot load it" in refused(capfd, "predict", "cut.onnx", "photos")
    assert "absent.onnx: no such file" in refused(capfd, "predict", "absent.onnx", "photos")
    assert "is exported already" in refused(capfd, "export", onnx_file, "--out", "again.onnx")
    for name in ("empty.onnx", "empty.xml", "empty.pt2"):
        (here / name).touch()
        assert name in refused(capfd, "predict", name, "photos")
        (here / name).write_text("words\n" * 50)
        assert name in refused(capfd, "predict", name, "photos")


def test_help_teaches_by_example(capfd):
    with pytest.raises(SystemExit) as left:
        main(["export", "--help"])
    assert left.value.code == 0
    assert capfd.readouterr().out.count("  patnet ") >= 3
