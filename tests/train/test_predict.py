"""Prediction, and Parquet files that survive whatever ends a process, on this machine and on Ray."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
from images import refuse_to_list
from rich.console import Console
from torch import nn
from train.running import FORK

from patnet import InputError, save_checkpoint
from patnet.cli import main
from patnet.loading import load
from patnet.train.answers import Answers
from patnet.train.predict import Network, check_classifier, class_probabilities, predict, tta_views

OPTIONS = {"batch_size": 2, "top": 2, "accelerator": "cpu", "console": Console(quiet=True)}
COLUMNS = ["path", "label", "probability", "top_labels", "top_probabilities", "error", "model", "version"]


@pytest.fixture
def images(images_dir):
    return images_dir(**{"a": 13, "b": 4, "b/c": 6})


def write(loaded, images, out, **options):
    return predict(loaded, [str(images)], out=str(out), **{**OPTIONS, "rows_per_file": 5, **options})


def rows(out):
    """The rows of all files, by image."""
    found = pq.read_table(out).to_pylist()
    assert len({row["path"] for row in found}) == len(found)
    return sorted(found, key=lambda row: row["path"])


@pytest.mark.parametrize(
    ("tta", "turn"),
    [
        (2, lambda x: x.flip(3)),
        (4, lambda x: x.flip(2)),
        (4, lambda x: x.rot90(2, (2, 3))),
        (8, lambda x: x.rot90(1, (2, 3))),
        (8, lambda x: x.transpose(2, 3)),
    ],
)
def test_a_prediction_with_tta_is_the_same_for_each_view(tta, turn):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval()
    x = torch.randn(5, 2, 4, 4)
    views = list(tta_views(x, tta))
    assert torch.equal(views[0], x)
    assert len({tuple(view.flatten().tolist()) for view in views}) == tta
    with torch.no_grad():
        assert not torch.allclose(class_probabilities(model, x), class_probabilities(model, turn(x)))
        averaged = class_probabilities(model, x, tta)
        torch.testing.assert_close(averaged, class_probabilities(model, turn(x), tta))
    torch.testing.assert_close(averaged.sum(1), torch.ones(5))


def test_eight_views_need_square_images(checkpoint_dir):
    loaded = load(checkpoint_dir)
    loaded.data_config["input_size"] = (3, 4, 6)
    assert {view.shape for view in tta_views(torch.randn(2, 3, 4, 6), 4)} == {(2, 3, 4, 6)}
    with pytest.raises(InputError, match="these are 4x6 px; use 4"):
        check_classifier(loaded, 8)


def test_files_hold_the_predictions_in_memory(checkpoint_dir, images, tmp_path):
    (images / "a" / "05.png").write_bytes(b"")
    loaded, out = load(checkpoint_dir), tmp_path / "out"
    kept = predict(loaded, [str(images)], **OPTIONS)
    assert (kept.images, kept.unreadable) == (23, 1)
    for _ in range(2):  # the second time only the unreadable one is left
        found = write(loaded, images, out, max_unreadable=0.1)
        assert (found.images, found.unreadable, found.rows) == (23, 1, [])
    assert len(list(out.glob("part-*"))) == 4  # of three batches each
    assert len(list(out.iterdir())) == 5
    table = rows(out)
    assert list(table[0]) == COLUMNS
    assert "is empty" in table[5]["error"]
    assert table[5]["label"] is table[5]["top_labels"] is None
    assert table == kept.rows
    assert kept.rows[0]["label"] == kept.rows[0]["top_labels"][0]
    assert kept.rows[0]["probability"] == kept.rows[0]["top_probabilities"][0]
    metadata = pq.read_schema(next(out.iterdir())).metadata[b"patnet"].decode()
    assert '"class_names": ["a", "b", "c"]' in metadata
    assert '"mean"' in metadata


def test_more_images_are_added_to_the_files(checkpoint_dir, images, tmp_path):
    loaded, out = load(checkpoint_dir), tmp_path / "out"
    assert write(loaded, images / "a", out, workers=2).images == 13
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert write(loaded, images, out).images == 23
    assert len(rows(out)) == 23
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())


def test_too_many_unreadable_images_are_an_error(checkpoint_dir, images, tmp_path):
    for file in sorted(images.rglob("*.png"))[:3]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"3 of 23 images cannot be read, more than --max-unreadable 0\.01 .*00\.png"):
        write(load(checkpoint_dir), images, tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 23
    assert write(load(checkpoint_dir), images, tmp_path / "out", max_unreadable=0.2).unreadable == 3


def test_many_unreadable_images_end_a_prediction(checkpoint_dir, images, tmp_path, monkeypatch):
    for file in sorted(images.rglob("*.png"))[:3]:
        file.write_bytes(b"")
    monkeypatch.setattr(sys.modules[predict.__module__], "ENOUGH", 4)
    with pytest.raises(InputError, match=r"3 of 4 images cannot be read, .*\); the prediction stops there"):
        write(load(checkpoint_dir), images, tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 4


@pytest.mark.parametrize("bad", [3, 23])
def test_images_that_could_not_be_read_are_read_again(checkpoint_dir, images, tmp_path, bad):
    loaded, out = load(checkpoint_dir), tmp_path / "out"
    expected = predict(loaded, [str(images)], **OPTIONS).rows
    contents = {file: file.read_bytes() for file in sorted(images.rglob("*.png"))[:bad]}
    for file in contents:
        file.write_bytes(b"")
    assert write(loaded, images, out, max_unreadable=1).unreadable == bad
    for left in (bad - 1, 0):
        for file in list(contents)[left:]:
            file.write_bytes(contents[file])
        found = write(loaded, images, out, max_unreadable=1)
        assert (found.images, found.unreadable) == (23, left)
        assert sum(row["error"] is not None for row in rows(out)) == left
    assert rows(out) == expected


def test_embeddings_are_the_features_before_the_classifier(checkpoint_dir, images, tmp_path):
    loaded = load(checkpoint_dir)
    (images / "a" / "05.png").write_bytes(b"")
    for name, options in {"plain": {}, "fused": {"fused": True}, "tta": {"tta": 2}}.items():
        write(loaded, images, tmp_path / name, embeddings=True, max_unreadable=0.1, **options)
    weight, bias = (p.detach().numpy() for p in loaded.model.get_classifier().parameters())
    schema = pq.read_schema(next((tmp_path / "plain").iterdir()))
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    for plain, fused, tta in zip(*(rows(tmp_path / name) for name in ("plain", "fused", "tta")), strict=True):
        if plain["error"]:
            assert plain["embedding"] is None
            continue
        logits = weight @ np.array(plain["embedding"]) + bias
        logits -= logits.max()
        assert plain["probability"] == pytest.approx(1 / np.exp(logits).sum(), abs=1e-5)
        assert plain["embedding"] == pytest.approx(fused["embedding"], rel=1e-3, abs=1e-4)
        assert plain["embedding"] != pytest.approx(tta["embedding"], rel=1e-3, abs=1e-4)
    with pytest.raises(InputError, match="have --embeddings True; choose another --out"):
        write(loaded, images, tmp_path / "plain")


def test_a_classifier_that_takes_no_vector_has_no_embeddings(images, tmp_path):
    save_checkpoint(timm.create_model("dla46x_c", num_classes=2), tmp_path / "dla")
    with pytest.raises(
        InputError, match="--embeddings: the input of this network's classifier, a Conv2d, is no vector"
    ):
        write(load(tmp_path / "dla"), images, tmp_path / "out", embeddings=True)


@pytest.mark.parametrize("name", ["pandas", "polars", "duckdb"])
def test_other_programs_read_the_files(name, checkpoint_dir, images, tmp_path):
    library = pytest.importorskip(name)
    write(load(checkpoint_dir), images, tmp_path / "out", embeddings=True)
    expected, files = rows(tmp_path / "out"), f"{tmp_path}/out/*.parquet"
    if name == "duckdb":
        found = library.sql(
            f"select path, label from '{files}' where embedding[1] is not null order by path"
        ).fetchall()
    elif name == "polars":
        found = library.read_parquet(files).sort("path").select("path", "label").rows()
    else:
        table = library.read_parquet(tmp_path / "out").sort_values("path")
        found = list(zip(table["path"], table["label"], strict=True))
    assert found == [(row["path"], row["label"]) for row in expected]


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_moment_each_image_comes_once(checkpoint_dir, images, tmp_path, workers):
    """The union of what killed processes wrote is what one process writes that is never stopped."""
    loaded = load(checkpoint_dir)
    start = time.monotonic()
    write(loaded, images, tmp_path / "never")
    took = time.monotonic() - start
    rng, out, kills, ended = random.Random(workers), tmp_path / "killed", 0, False

    def in_a_group():
        os.setpgid(0, 0)  # to be killed with its loader processes
        write(loaded, images, out, workers=workers)

    while not ended:
        child = FORK.Process(target=in_a_group)
        child.start()
        child.join(rng.uniform(0, took))
        if child.exitcode is None:
            kills += 1
            with suppress(ProcessLookupError):  # it has no group yet
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        ended = child.exitcode == 0
        took *= 1.1  # so that it ends
    assert not list(out.glob(".*"))
    assert rows(out) == rows(tmp_path / "never")
    assert kills


def test_other_models_and_options_are_refused(checkpoint_dir, images, tmp_path):
    loaded, out = load(checkpoint_dir), tmp_path / "out"
    write(loaded, images, out)
    weights = safetensors.torch.load_file(loaded.file)
    weights["classifier.bias"] += 1
    (tmp_path / "changed").mkdir()
    safetensors.torch.save_file(weights, tmp_path / "changed" / "model.safetensors")
    (tmp_path / "changed" / "config.json").write_text(loaded.file.with_name("config.json").read_text())
    (tmp_path / "file").touch()
    for change, message in [
        ({"top": 1}, "have --top 2"),
        ({"tta": 2}, "have --tta 1"),
        ({"precision": "bf16"}, "are computed in fp32"),
        ({"out": images}, "exists and holds no predictions"),
        ({"out": tmp_path / "file"}, "cannot be used"),
        ({"out": "ftp2://bucket/out"}, "cannot be opened"),
        ({"images": tmp_path / "absent"}, "no such image"),
        ({"loaded": load(tmp_path / "changed")}, "are of another model"),
    ]:
        with pytest.raises(InputError, match=message):
            write(**{"loaded": loaded, "images": images, "out": out, **change})
    (out / "part-x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be used"):
        write(loaded, images, out)


@pytest.mark.parametrize(
    ("wrong", "message"), [("absent.png", "no such image"), ("*.jpg", "no file matches"), ("no.txt", "names no images")]
)
def test_all_sources_are_checked_before_the_first_prediction(
    checkpoint_dir, images, tmp_path, monkeypatch, wrong, message
):
    (tmp_path / "no.txt").touch()
    monkeypatch.setattr(Network, "__call__", lambda *_: pytest.fail("predicts"))
    with pytest.raises(InputError, match=message):
        predict(load(checkpoint_dir), [str(images), str(tmp_path / wrong)], **OPTIONS)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_without_rights_is_one_error(checkpoint_dir, images, tmp_path, monkeypatch, capfd, workers):
    """In this process, in those that load, and in the thread that counts."""
    refuse_to_list(monkeypatch, images / "b" / "c")
    with pytest.raises(InputError, match=r"images: cannot be listed \(.*Permission denied"):
        write(load(checkpoint_dir), images, tmp_path / "out", workers=workers)
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_command_stops_the_first(checkpoint_dir, images, tmp_path, monkeypatch):
    """So that no image comes twice; there are no locks, which a store does not have."""
    loaded, out, write_file = load(checkpoint_dir), tmp_path / "out", Answers._write

    def interrupted(*args):
        monkeypatch.undo()
        assert write(loaded, images, out).images == 23
        write_file(*args)

    monkeypatch.setattr(Answers, "_write", interrupted)
    with pytest.raises(InputError, match="another command has started to write there"):
        write(loaded, images, out)
    assert len(rows(out)) == 23


def test_a_command_that_is_refused_stops_no_other(checkpoint_dir, images, tmp_path, monkeypatch):
    loaded, out, write_file = load(checkpoint_dir), tmp_path / "out", Answers._write

    def interrupted(*args):
        write_file(*args)
        with pytest.raises(InputError, match="have --top 2"):
            write(loaded, images, out, top=1)

    monkeypatch.setattr(Answers, "_write", interrupted)
    assert write(loaded, images, out).images == 23
    assert len(rows(out)) == 23


def test_a_full_disk_leaves_complete_files(checkpoint_dir, images, tmp_path, monkeypatch):
    loaded, out, write_file, count = load(checkpoint_dir), tmp_path / "out", Answers._write, [0]

    class Full:
        def __getattr__(self, name):
            raise OSError(28, "No space left on device")

    def full(*args):
        count[0] += 1
        with pytest.MonkeyPatch.context() as patch:
            if count[0] == 3:
                patch.setattr("patnet.train.answers.open_store", lambda name: (Full(), name))
            write_file(*args)

    monkeypatch.setattr(Answers, "_write", full)
    with pytest.raises(InputError, match=r"out: cannot be written \(.*No space left.*the same command resumes"):
        write(loaded, images, out)
    assert len(rows(out)) == 12
    write(loaded, images, out)
    assert len(rows(out)) == 23


def test_names_that_are_not_utf_8_are_escaped(checkpoint_dir, images, tmp_path):
    try:
        (images / "a" / "00.png").rename(images / "a" / "\udcff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    for _ in range(2):
        assert write(load(checkpoint_dir), images, tmp_path / "out").images == 23
    assert any(row["path"].endswith("\\xff.png") for row in rows(tmp_path / "out"))


def test_ray_has_to_be_installed_and_reached(checkpoint_dir, images, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    command = ["predict", str(checkpoint_dir), str(images), "--out", str(out), "--engine", "ray"]
    with monkeypatch.context() as patch:
        patch.setattr("patnet.errors.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r"--engine ray needs ray, which is not installed.*patnet\[scale\]"):
            write(load(checkpoint_dir), images, out, engine="ray")
    pytest.importorskip("ray")
    assert main([*command, "--ray-address", "127.0.0.1:1"]) == 2
    assert "--ray-address 127.0.0.1:1: no Ray cluster can be reached" in capfd.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "no address")
    assert main(command) == 2
    assert "--ray-address no address: no Ray cluster" in capfd.readouterr().err


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(checkpoint_dir, images, tmp_path, capfd):
    """In both forms of a network, after a start that was killed, and with requests that no node has."""
    pytest.importorskip("ray")
    (images / "a" / "05.png").write_bytes(b"")
    exported = tmp_path / "network.pt2"
    calibration = ["--data", str(images), "--check-images", "2", "--format", "torch"]
    assert main(["export", str(checkpoint_dir), "--out", str(exported), *calibration]) == 0
    for network in (checkpoint_dir, exported):
        loaded, options = load(network), {"max_unreadable": 0.1, "embeddings": network == checkpoint_dir}
        write(loaded, images, tmp_path / "local", **options)
        shutil.copytree(tmp_path / "local", tmp_path / "ray")
        next((tmp_path / "ray").glob("part-*")).unlink()
        found = write(loaded, images, tmp_path / "ray", engine="ray", **options)
        assert (found.images, found.unreadable) == (23, 1)
        for ours, theirs in zip(rows(tmp_path / "local"), rows(tmp_path / "ray"), strict=True):
            assert ours["probability"] == pytest.approx(theirs.pop("probability"), abs=1e-5)
            assert ours["top_probabilities"] == pytest.approx(theirs.pop("top_probabilities"), abs=1e-5)
            expected = pytest.approx(theirs.pop("embedding", None) or [], rel=1e-5, abs=1e-5)
            assert (ours.pop("embedding", None) or []) == expected
            assert theirs.items() <= ours.items()
        shutil.rmtree(tmp_path / "local")
        shutil.rmtree(tmp_path / "ray")
    with pytest.raises(InputError, match=r"no node of the Ray cluster has .* 1e\+15 memory"):
        write(load(checkpoint_dir), images, tmp_path / "ray", engine="ray", actor_gb=1e6)


@pytest.mark.slow
def test_ray_nodes_workers_and_the_command_may_be_killed(checkpoint_dir, tmp_path):
    pytest.importorskip("ray")
    script = Path(__file__).parents[2] / "benchmarks" / "scale.py"
    words = [str(checkpoint_dir), "--images", "3000", "--nodes", "2", "--kills", "4", "--work", str(tmp_path)]
    subprocess.run(
        [sys.executable, str(script), *words, "--out", str(tmp_path / "found.json")], check=True, timeout=900
    )
    local, ray = json.loads((tmp_path / "found.json").read_text())
    assert local["rows"] == local["once"] == ray["rows"] == ray["once"] == 3000
    assert ray["same_class"] == 1
    assert ray["largest_difference"] < 1e-5
    assert len(ray["kills"]) == 4
