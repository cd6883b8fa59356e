"""Predictions in Parquet shards: each picture once, whatever is killed when."""

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
from rich.console import Console

from patnet import InputError
from patnet.cli import main
from patnet.models.checkpoint import save_checkpoint
from patnet.train import predict
from patnet.train.shards import Shards, predict_shards

QUIET = Console(quiet=True)
OPTIONS = {"shard_size": 5, "batch_size": 2, "top": 2, "accelerator": "cpu", "console": QUIET}


@pytest.fixture
def network(tmp_path, settled):
    tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32, "num_classes": 3}
    model = settled(timm.create_model("patnet_t0", **tiny))
    config = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    config |= {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    save_checkpoint(model, tmp_path / "network", data_config=config, label_names=["x", "y", "z"])
    return tmp_path / "network"


@pytest.fixture
def pictures(photos):
    return photos(**{"a": 13, "b": 4, "b/c": 6})


def rows(folder: Path) -> pa.Table:
    """All shards, in their order."""
    return pa.concat_tables(pq.read_table(file) for file in Shards(folder, 1).files())


def test_the_shards_hold_what_predict_says(network, pictures, tmp_path):
    (pictures / "a" / "05.png").write_bytes(b"")
    written = predict_shards(network, [str(pictures)], tmp_path / "out", **OPTIONS)
    assert written == (23, 1, 0)
    assert sorted(f.name for f in (tmp_path / "out").glob("[!.]*")) == [
        "_manifest.json",
        *(f"part-{n:05d}.parquet" for n in range(5)),
    ]
    table = rows(tmp_path / "out").to_pylist()
    assert [row["path"] for row in table] == sorted(row["path"] for row in table)
    assert "is empty" in table[5]["error"]
    assert table[5]["label"] is table[5]["top_labels"] is None
    answers, _ = predict(network, [str(pictures)], top=2, batch_size=2, accelerator="cpu", console=QUIET)
    assert len(answers) == 22
    for row, answer in zip([row for row in table if row["error"] is None], answers, strict=True):
        assert (row["path"], row["label"]) == (answer["path"], answer["label"])
        assert row["probability"] == pytest.approx(answer["probability"], abs=1e-6)
        assert row["top_labels"] == [entry["label"] for entry in answer["top"]]
    assert predict_shards(network, [str(pictures)], tmp_path / "out", **OPTIONS) == written


@pytest.mark.parametrize(("workers", "at_once"), [(0, 1), (1, 2)])
def test_killed_at_any_moment_each_picture_comes_once(network, pictures, tmp_path, workers, at_once):
    """The union of what killed processes wrote is what one that was left alone writes."""
    start = time.monotonic()
    predict_shards(network, [str(pictures)], tmp_path / "whole", **OPTIONS)
    took = time.monotonic() - start
    rng, kills = random.Random(workers), 0
    out = tmp_path / "killed"

    def in_a_group():
        os.setpgid(0, 0)  # to be killed with its loader processes
        predict_shards(network, [str(pictures)], out, **OPTIONS, workers=workers)

    while len(list(out.glob("part-*"))) < 5:
        children = [multiprocessing.get_context("fork").Process(target=in_a_group) for _ in range(at_once)]
        for child in children:
            child.start()
        for child in children:
            child.join(rng.uniform(0, took))
            if child.exitcode is None:
                try:
                    os.killpg(child.pid, signal.SIGKILL)
                except ProcessLookupError:  # it has no group yet
                    os.kill(child.pid, signal.SIGKILL)
                kills += 1
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL)
        took *= 1.1  # so that it ends
    assert predict_shards(network, [str(pictures)], out, **OPTIONS) == (23, 0, 0)
    assert rows(out).equals(rows(tmp_path / "whole"))
    print(f"{kills} kills")


def test_two_processes_on_one_folder_share_the_work(network, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mine = Shards(out, 5)
    read, write = multiprocessing.Pipe(duplex=False)

    def other():
        theirs = Shards(out, 5)
        write.send([theirs.claim(1), theirs.claim(2)])
        time.sleep(60)

    assert mine.claim(1)
    assert not mine.claim(1)
    child = multiprocessing.get_context("fork").Process(target=other)
    child.start()
    assert read.recv() == [False, True]
    assert not mine.claim(2)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert mine.claim(2)  # what it left


def test_processes_of_torchrun_share_the_work(network, pictures, tmp_path, monkeypatch):
    predict_shards(network, [str(pictures)], tmp_path / "one", **OPTIONS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    set_by_torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**set_by_torchrun, "TORCHELASTIC_RUN_ID": "test"}.items():
        monkeypatch.setenv(name, str(value))
    said = multiprocessing.get_context("fork").Queue()

    def ranked(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        said.put(predict_shards(network, [str(pictures)], tmp_path / "two", **OPTIONS))

    children = [multiprocessing.get_context("fork").Process(target=ranked, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    assert {said.get(timeout=60), said.get(timeout=60)} == {(23, 0, 0), None}
    for child in children:
        child.join()
    assert rows(tmp_path / "two").equals(rows(tmp_path / "one"))


def test_other_pictures_models_and_sizes_are_refused(network, pictures, tmp_path):
    out = tmp_path / "out"
    predict_shards(network, [str(pictures)], out, **OPTIONS)
    with pytest.raises(InputError, match="have --shard_size 5; give another --parquet"):
        predict_shards(network, [str(pictures)], out, **{**OPTIONS, "shard_size": 4})
    with pytest.raises(InputError, match="have --top 2"):
        predict_shards(network, [str(pictures)], out, **{**OPTIONS, "top": 1})
    with pytest.raises(InputError, match="are of other pictures"):
        predict_shards(network, [str(pictures / "a")], out, **OPTIONS)
    with pytest.raises(InputError, match="exists and holds no predictions"):
        predict_shards(network, [str(pictures)], pictures, **OPTIONS)
    weights = safetensors.torch.load_file(network / "model.safetensors")
    weights["classifier.bias"] += 1
    safetensors.torch.save_file(weights, network / "model.safetensors")
    with pytest.raises(InputError, match="are by another model"):
        predict_shards(network, [str(pictures)], out, **OPTIONS)
    (out / "_manifest.json").write_text("{")
    with pytest.raises(InputError, match="not what patnet wrote"):
        predict_shards(network, [str(pictures)], out, **OPTIONS)


def test_a_full_disk_leaves_whole_shards(network, pictures, tmp_path, monkeypatch):
    write, count = pq.write_table, [0]

    def full(table, stream):
        write(table, stream)
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"part-00002.parquet: cannot be written \(No space left"):
        predict_shards(network, [str(pictures)], tmp_path / "out", **OPTIONS)
    assert not list((tmp_path / "out").glob(".writing*"))
    assert len(rows(tmp_path / "out")) == 10
    assert predict_shards(network, [str(pictures)], tmp_path / "out", **OPTIONS) == (23, 0, 0)


def test_the_command_says_how_it_went(network, pictures, tmp_path, capfd):
    (pictures / "a" / "05.png").write_bytes(b"")
    command = ["predict", str(network), str(pictures), "--accelerator", "cpu", "--parquet", str(tmp_path / "out")]
    assert main(command) == 2
    said = capfd.readouterr()
    assert said.out == f"Answers for 23 pictures in {tmp_path / 'out'}\n"
    assert "1 of 23 pictures cannot be read" in said.err
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["count"] == 23
    for extra, message in {
        "--json": "leave out --json",
        "--data elpv": "is in place of",
        "--shard_size 0": "must be at least 1",
    }.items():
        assert main([*command, *extra.split()]) == 2
        assert message in capfd.readouterr().err
    assert main(["predict", str(network), "--data", "elpv"]) == 2
    assert "give --parquet" in capfd.readouterr().err


def test_names_of_any_bytes_are_kept_readable(network, pictures, tmp_path):
    try:
        (pictures / "a" / "00.png").rename(pictures / "a" / "\udcff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert predict_shards(network, [str(pictures)], tmp_path / "out", **OPTIONS).unreadable == 0
    assert any(path.endswith("\\xff.png") for path in rows(tmp_path / "out")["path"].to_pylist())
