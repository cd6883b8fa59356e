"""Prediction, and Parquet files that processes share and that survive whatever ends one."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import IterableDataset
from train.running import FORK, in_ranks

from patnet import InputError
from patnet.data import ImageFiles
from patnet.loading import load
from patnet.train.predict import check_classifier, class_probabilities, predict, tta_views
from patnet.train.sinks import ParquetSink, Sink

OPTIONS = {"batch_size": 2, "top": 2, "accelerator": "cpu", "console": Console(quiet=True)}


@pytest.fixture
def images(images_dir):
    return images_dir(**{"a": 13, "b": 4, "b/c": 6})


def write(loaded, images, directory, size=5, **options):
    """Predict into Parquet files; what they hold, or None in all processes but the first."""
    sink = ParquetSink(directory, size)
    source = [str(images)] if isinstance(images, Path) else images
    return sink.written() if predict(loaded, source, sink, **{**OPTIONS, **options}) else None


def rows(directory):
    """The rows of all files, in order."""
    return pa.concat_tables(pq.read_table(file) for file in ParquetSink(directory).files())


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
    loaded, out, kept = load(checkpoint_dir), tmp_path / "out", Sink()
    assert predict(loaded, [str(images)], kept, **OPTIONS)
    assert [p.index for p in kept.predictions] == list(range(23))
    for _ in range(2):  # the second time there is nothing left to predict
        assert write(loaded, images, out) == (23, 1, 0)
    names = sorted(f.name for f in out.glob("[!.]*"))
    assert names == ["_manifest.json", *(f"part-{n:05d}.parquet" for n in range(5))]
    table = rows(out).to_pylist()
    assert "is empty" in table[5]["error"]
    assert table[5]["label"] is table[5]["top_labels"] is None
    for p, row in zip(kept.predictions, table, strict=True):
        assert (p.name, p.error) == (row["path"], row["error"])
        if not p.error:
            assert (p.labels[0], p.labels) == (row["label"], row["top_labels"])
            assert row["probability"] == pytest.approx(p.probabilities[0], abs=1e-6)


def test_data_sets_and_streams_are_predicted_by_index(checkpoint_dir, images, tmp_path):
    loaded = load(checkpoint_dir)
    write(loaded, images, tmp_path / "files")
    files = ImageFiles([(file, 0) for file in sorted(images.rglob("*.png"))])

    class Streamed(IterableDataset):
        def __iter__(self):
            return (files[i] for i in range(len(files)))

    for dataset in (files, Streamed()):
        out = tmp_path / type(dataset).__name__
        assert write(loaded, dataset, out, name="mine") == (23, 0, 0)
        (out / "part-00002.parquet").unlink()
        assert write(loaded, dataset, out, name="mine", workers=1) == (23, 0, 0)
        table = rows(out)
        assert table["index"].to_pylist() == list(range(23))
        assert table["label"].equals(rows(tmp_path / "files")["label"])


@pytest.mark.parametrize(("workers", "at_once"), [(0, 1), (1, 2)])
def test_killed_at_any_moment_each_image_comes_once(checkpoint_dir, images, tmp_path, workers, at_once):
    """The union of what killed processes wrote is what one process writes that is never stopped."""
    loaded = load(checkpoint_dir)
    start = time.monotonic()
    write(loaded, images, tmp_path / "never")
    took = time.monotonic() - start
    rng, out, kills = random.Random(workers), tmp_path / "killed", 0

    def in_a_group():
        os.setpgid(0, 0)  # to be killed with its loader processes
        write(loaded, images, out, workers=workers)

    while len(list(out.glob("part-*"))) < 5:
        children = [FORK.Process(target=in_a_group) for _ in range(at_once)]
        for child in children:
            child.start()
        for child in children:
            child.join(rng.uniform(0, took))
            if child.exitcode is None:
                kills += 1
                with suppress(ProcessLookupError):  # it has no group yet
                    os.killpg(child.pid, signal.SIGKILL)
                child.kill()
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL)
        took *= 1.1  # so that it ends
    assert write(loaded, images, out) == (23, 0, 0)
    assert not list(out.glob(".writing-*"))
    assert rows(out).equals(rows(tmp_path / "never"))
    assert kills


def test_a_part_belongs_to_one_process_while_it_lives(tmp_path):
    mine = ParquetSink(tmp_path / "out", 5)
    manifest = dict.fromkeys(("model", "preprocessing", "class_names", "images", "top", "tta"))
    mine.start({**manifest, "files": True, "count": 23})
    read, send = FORK.Pipe(duplex=False)

    def other():
        theirs = ParquetSink(tmp_path / "out", 5)
        send.send([theirs.claim(1), theirs.claim(2)])
        time.sleep(60)

    assert mine.claim(1)
    child = FORK.Process(target=other)
    child.start()
    assert read.recv() == [False, True]
    assert not mine.claim(2)
    child.kill()
    child.join()
    assert mine.claim(2)  # what it left


def test_processes_of_torchrun_share_a_directory(checkpoint_dir, images, tmp_path):
    loaded = load(checkpoint_dir)
    write(loaded, images, tmp_path / "one")
    found = in_ranks(lambda: write(loaded, images, tmp_path / "two"), context=FORK)
    assert found == [(23, 0, 0), None]
    assert rows(tmp_path / "two").equals(rows(tmp_path / "one"))


def test_other_images_models_and_options_are_refused(checkpoint_dir, images, tmp_path):
    loaded, out = load(checkpoint_dir), tmp_path / "out"
    write(loaded, images, out)
    weights = safetensors.torch.load_file(loaded.file)
    weights["classifier.bias"] += 1
    (tmp_path / "changed").mkdir()
    safetensors.torch.save_file(weights, tmp_path / "changed" / "model.safetensors")
    (tmp_path / "changed" / "config.json").write_text(loaded.file.with_name("config.json").read_text())
    for change, message in [
        ({"size": 4}, "have --shard-size 5; choose another --parquet"),
        ({"top": 1}, "have --top 2"),
        ({"tta": 2}, "have --tta 1"),
        ({"images": images / "a"}, "are of other images"),
        ({"directory": images}, "exists and holds no predictions"),
        ({"loaded": load(tmp_path / "changed")}, "are of another model"),
    ]:
        with pytest.raises(InputError, match=message):
            write(**{"loaded": loaded, "images": images, "directory": out, **change})
    (out / "_manifest.json").write_text("{")
    with pytest.raises(InputError, match="not what patnet wrote"):
        write(loaded, images, out)


def test_a_full_disk_leaves_complete_files(checkpoint_dir, images, tmp_path, monkeypatch):
    loaded, out, write_table, count = load(checkpoint_dir), tmp_path / "out", pq.write_table, [0]

    def full(table, stream):
        write_table(table, stream)
        count[0] += 1
        if count[0] == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match=r"part-00002.parquet: cannot be written \(No space left"):
        write(loaded, images, out)
    assert not list(out.glob(".writing*"))
    assert len(rows(out)) == 10
    assert write(loaded, images, out) == (23, 0, 0)


def test_names_that_are_not_utf_8_are_escaped(checkpoint_dir, images, tmp_path):
    try:
        (images / "a" / "00.png").rename(images / "a" / "\udcff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert write(load(checkpoint_dir), images, tmp_path / "out") == (23, 0, 0)
    assert any(path.endswith("\\xff.png") for path in rows(tmp_path / "out")["path"].to_pylist())
