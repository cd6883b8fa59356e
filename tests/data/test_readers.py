"""Training and evaluation on tar shards and on Hugging Face data sets, through timm's readers."""

import io
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from train.running import QUIET, equal_weights, run

import patnet
from patnet import InputError, errors
from patnet.data import UnreadableImage, open_data, open_split
from patnet.data.batches import Batches
from patnet.data.streams import StreamLoader
from patnet.train import Interrupted
from patnet.train.classifier import Classifier
from patnet.train.evaluate import evaluate

datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")

COUNT = 10  # images in a shard


def image(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 40, (36, 40, 3), dtype=np.uint8)
    return Image.fromarray(40 + 150 * np.uint8(number % 2) + noise)


def tar_shard(file, images, labels) -> None:
    with tarfile.open(file, "w") as tar:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            image.save(png, "png")
            for suffix, content in (("png", png.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def parquet(file, images, labels) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(file)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    for shard in range(3):
        numbers = range(shard * COUNT, (shard + 1) * COUNT)
        tar_shard(root / f"images-{shard}.tar", map(image, numbers), [n % 2 for n in numbers])
    return {
        "data": "wds/images",
        "data_root": str(root),
        "train_split": f"images-{{0..1}}.tar|{2 * COUNT}",
        "val_split": f"images-2.tar|{COUNT}",
        "num_classes": 2,
    }


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("on_disk")
    for shard in range(3):
        numbers = range(shard * COUNT, (shard + 1) * COUNT)
        name = f"train-{shard:05d}-of-00002" if shard < 2 else "validation-00000-of-00001"
        parquet(root / f"{name}.parquet", [image(n) for n in numbers], [n % 2 for n in numbers])
    return {"data": f"hfds/{root}", "data_root": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def streamed(on_disk):
    splits = {"train_split": f"train|{2 * COUNT}", "val_split": f"validation|{COUNT}"}
    return {**on_disk, "data": on_disk["data"].replace("hfds", "hfids"), "num_classes": 2, **splits}


@pytest.fixture(params=["tars", "on_disk", pytest.param("streamed", marks=pytest.mark.slow)])
def source(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_runs_resume_bit_by_bit_and_are_evaluated(source, tmp_path, monkeypatch, workers):
    options = {**source, "workers": workers, "mixup": 0.4, "checkpoint_minutes": 1e-9, "patience": 2}
    assert run(out=tmp_path / "uninterrupted", **options).epochs == 2
    step, count = Classifier.training_step, [0]

    def interrupted(self, given, batch_idx):
        count[0] += 1
        if count[0] == 8:
            signal.raise_signal(signal.SIGTERM)
        return step(self, given, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    with pytest.raises(Interrupted):
        run(out=tmp_path / "cut", **options)
    monkeypatch.undo()
    run(out=tmp_path / "cut", resume=True, **options)
    assert equal_weights(tmp_path / "uninterrupted", tmp_path / "cut")

    options = {"batch_size": 4, "accelerator": "cpu", "console": QUIET, "workers": workers}
    loaded = patnet.load(tmp_path / "cut")
    result, _ = evaluate(loaded, **options)
    assert result["images"] == COUNT


def test_labels_beyond_the_classes_are_named(tars, tmp_path):
    tar_shard(tmp_path / "images-0.tar", map(image, range(4)), [7] * 4)
    options = {**tars, "data_root": str(tmp_path), "train_split": "images-0.tar|4", "val_split": "images-0.tar|4"}
    with pytest.raises(InputError, match=r"label 7, none of the classes 0 to 1; --num-classes"):
        run(out=tmp_path / "run", workers=0, **options)


@pytest.mark.parametrize(("chans", "white"), [(3, (255, 255, 255)), (1, 255)])
@pytest.mark.parametrize("kind", ["wds", "hfids", "hfds"])
def test_transparency_is_put_over_white(tmp_path, kind, chans, white):
    transparent, opaque = Image.new("RGBA", (8, 8)), Image.new("LA", (8, 8), (90, 255))
    name, split = f"{kind}/{tmp_path}", "train|2"
    if kind == "wds":
        tar_shard(tmp_path / "images-0.tar", [transparent, opaque], [0, 1])
        name, split = "wds/images", "images-0.tar|2"
    else:
        parquet(tmp_path / "train-00000-of-00001.parquet", [transparent, opaque], [0, 1])
    root = tmp_path if kind == "wds" else tmp_path / "cache"
    stream = open_split(name, split, in_chans=chans, data_root=str(root))
    (first, _), (second, _) = stream if kind != "hfds" else (stream[0], stream[1])
    assert (first.mode, first.getpixel((0, 0))) == ("RGB" if chans == 3 else "L", white)
    assert second.getpixel((0, 0)) == ((90, 90, 90) if chans == 3 else 90)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_shuffled_differently_and_reproducibly(tars, workers):
    def order(start):
        stream = open_data(**tars).train
        brightness = [(0, lambda image: torch.tensor(np.asarray(image)[0, 0, 0]))]
        loader = StreamLoader(stream, 2 * COUNT, Batches(4), 0, brightness, num_workers=workers)
        loader.load_state_dict(start)
        return [[int(value) for images, _, _ in loader for value in images] for _ in range(2)]

    first, second = order({"epoch": 0, "given": 0})
    assert first != second
    assert [first, second] == order({"epoch": 0, "given": 0})
    assert order({"epoch": 0, "given": 2}) == [first[8:], second]
    assert workers or sorted(first) == sorted(second)  # each of two workers completes its batches


def test_a_stream_that_ends_early_is_named(tars):
    to_tensor = [(0, lambda image: torch.tensor(np.asarray(image)))]
    for workers in (0, 3):
        loader = StreamLoader(open_data(**tars).train, 36, Batches(4), 0, to_tensor, num_workers=workers)
        with pytest.raises(InputError, match=r"ended after \d of 9 batches.*lower --workers"):
            list(loader)


def test_missing_shards_splits_and_packages_are_named(tars, on_disk, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"has no shard .*images-3.tar"):
        open_data(**{**tars, "train_split": "images-{0..3}.tar|40"})
    with pytest.raises(InputError, match=r"after the split, as in 'train\|50000'"):
        open_data(on_disk["data"].replace("hfds", "hfids"), data_root=str(tmp_path))
    with pytest.raises(InputError, match="gives no number of images after the bar"):
        open_data(**{**on_disk, "train_split": "train|many"})
    with pytest.raises(InputError, match="timm cannot open it"):
        open_data(f"hfds/{tmp_path}/absent", data_root=str(tmp_path))
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs datasets, which is not installed: pip install 'patnet\[data\]'"):
        open_data(**on_disk)


def test_an_unreadable_image_of_a_data_set_is_not_replaced_by_its_reader(on_disk, monkeypatch):
    split = open_split(on_disk["data"], "train", data_root=on_disk["data_root"])
    assert split[1][0].size == (40, 36)
    monkeypatch.setattr(type(split.reader), "__getitem__", lambda self, index: (io.BytesIO(b"damaged"), 0))
    with pytest.raises(UnreadableImage, match=r"hfds/.*\[1\]: the file is not an image"):
        split[1]
