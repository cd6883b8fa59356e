"""Training, evaluation and prediction on tar shards and on data sets of Hugging Face's, through timm's readers."""

import importlib.util
import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from patnet import InputError
from patnet.data import open_data
from patnet.train import Interrupted, TrainConfig, evaluate, fit
from patnet.train.classifier import Classifier
from patnet.train.shards import predict_shards

datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")

QUIET = Console(quiet=True)
COUNT = 10  # pictures in a shard


def picture(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 40, (36, 40, 3), dtype=np.uint8)
    return Image.fromarray(40 + 150 * np.uint8(number % 2) + noise)


def tar_shard(file, first: int) -> None:
    with tarfile.open(file, "w") as tar:
        for number in range(first, first + COUNT):
            png = io.BytesIO()
            picture(number).save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    for shard in range(3):
        tar_shard(root / f"pictures-{shard}.tar", shard * COUNT)
    return {
        "data": "wds/pictures",
        "data_root": str(root),
        "train_split": f"pictures-{{0..1}}.tar|{2 * COUNT}",
        "val_split": f"pictures-2.tar|{COUNT}",
        "num_classes": 2,
    }


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("on_disk")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    for shard in range(3):
        numbers = range(shard * COUNT, (shard + 1) * COUNT)
        table = {"image": [picture(n) for n in numbers], "label": [n % 2 for n in numbers]}
        name = f"train-{shard:05d}-of-00002" if shard < 2 else "validation-00000-of-00001"
        datasets.Dataset.from_dict(table, features=features).to_parquet(root / f"{name}.parquet")
    return {"data": f"hfds/{root}", "data_root": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def streamed(on_disk):
    splits = {"train_split": f"train|{2 * COUNT}", "val_split": f"validation|{COUNT}"}
    return {**on_disk, "data": on_disk["data"].replace("hfds", "hfids"), **splits}


@pytest.fixture(params=["tars", "on_disk", pytest.param("streamed", marks=pytest.mark.slow)])
def source(request):
    return request.getfixturevalue(request.param)


def config(source, out, **options) -> TrainConfig:
    tiny = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": 2, "feature_dim": 32}
    common = {"model_args": tiny, "size": 32, "batch_size": 4, "workers": 0, "epochs": 2, "accelerator": "cpu"}
    common |= {"warmup_epochs": 0.5, "mixup": 0.4, "checkpoint_minutes": 1e-9}
    return TrainConfig(out=str(out), **{**common, **source, **options})


def equal(a, b) -> bool:
    mine, yours = (safetensors.torch.load_file(run / "last" / "model.safetensors") for run in (a, b))
    return mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)


@pytest.mark.parametrize(("workers", "batch"), [(0, 7), pytest.param(2, 7, marks=pytest.mark.slow)])
def test_a_run_that_was_interrupted_ends_with_the_same_weights(source, tmp_path, monkeypatch, workers, batch):
    assert fit(config(source, tmp_path / "whole", workers=workers), console=QUIET).epochs == 2
    step, count = Classifier.training_step, [0]

    def interrupted(self, given, batch_idx):
        count[0] += 1
        if count[0] == batch + 1:
            raise KeyboardInterrupt
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises(Interrupted):
        fit(config(source, tmp_path / "cut", workers=workers), console=QUIET)
    monkeypatch.setattr(Classifier, "training_step", step)
    fit(config(source, tmp_path / "cut", workers=workers), resume=True, console=QUIET)
    assert equal(tmp_path / "whole", tmp_path / "cut")


def test_evaluation_and_prediction(source, tmp_path):
    fit(config(source, tmp_path / "run", epochs=1), console=QUIET)
    options = {"batch_size": 4, "workers": 0, "accelerator": "cpu", "console": QUIET}
    result, _ = evaluate(tmp_path / "run", **options)
    assert result["pictures"] == COUNT
    of_data = {"data": source["data"], "data_root": source["data_root"]}
    of_data["split"] = source.get("val_split", "validation")
    options |= {"shard_size": 3, "workers": 1}
    out = tmp_path / "out"
    assert predict_shards(tmp_path / "run", [], out, **of_data, **options) == (COUNT, 0, 0)
    whole = [file.read_bytes() for file in sorted(out.glob("part-*"))]
    for number in (1, 3):
        (out / f"part-0000{number}.parquet").unlink()
    assert predict_shards(tmp_path / "run", [], out, **of_data, **options) == (COUNT, 0, 0)
    assert [file.read_bytes() for file in sorted(out.glob("part-*"))] == whole
    assert pq.read_table(out)["index"].to_pylist() == list(range(COUNT))


def test_epochs_are_shuffled_differently_and_the_same_again(tars):
    from patnet.data.loading import StreamLoader

    def labels(workers, epochs):
        stream = open_data(**tars).train
        loader = StreamLoader(
            stream,
            0,
            [(0, lambda p: torch.tensor(np.asarray(p)[0, 0, 0]))],
            batches=5,
            batch_size=4,
            num_workers=workers,
        )
        return [[int(value) for pictures, _, _ in loader for value in pictures] for _ in range(epochs)]

    for workers in (0, 2):
        first, second = labels(workers, 2)
        assert first != second
        assert [first, second] == labels(workers, 2)
        # Each of two loader processes rounds its ten pictures up to whole batches.
        assert workers or sorted(first) == sorted(second)


def test_what_is_missing_is_named(tars, on_disk, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no shard .*pictures-3.tar"):
        open_data(**{**tars, "train_split": "pictures-{0..3}.tar|40"})
    with pytest.raises(InputError, match=r"give it after the split, as in 'train\|50000'"):
        open_data(on_disk["data"].replace("hfds", "hfids"), data_root=str(tmp_path))
    with pytest.raises(InputError, match="timm cannot open it"):
        open_data(f"hfds/{tmp_path}/absent", data_root=str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("datasets",) else find(name))
    with pytest.raises(InputError, match=r"needs datasets, not installed here: pip install 'patnet\[data\]'"):
        open_data(**on_disk)


def test_a_stream_that_ends_early_is_named(tars, tmp_path):
    with pytest.raises(InputError, match=r"ended after \d of 5 batches.*lower --workers"):
        fit(config({**tars}, tmp_path / "run", workers=3), console=QUIET)
