import io
import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY, write_images
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.utils.data import IterableDataset, Subset
from train.running import FORK, in_ranks

from patnet import InputError
from patnet.data import ImageFiles
from patnet.loading import load
from patnet.models import Loaded
from patnet.train.evaluate import draw_mistakes, evaluate, summarise
from patnet.train.predict import launch, predict

OPTIONS = {"batch_size": 3, "workers": 0, "accelerator": "cpu", "console": Console(quiet=True)}


@given(classes=st.integers(2, 8), images=st.integers(1, 60), seed=st.integers(0, 1000))
def test_metrics_are_those_of_the_confusion_matrix(classes, images, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(images, classes, generator=generator)).softmax(1)
    labels = torch.randint(0, classes, (images,), generator=generator)
    result = summarise(probs, labels, [f"c{i}" for i in range(classes)])
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (labels.numpy(), probs.argmax(1).numpy()), 1)
    assert result["confusion_matrix"] == matrix.tolist()
    hits, present, found = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision, recall = hits / found.clip(1), hits / present.clip(1)
    f1 = 2 * precision * recall / (precision + recall).clip(1e-12)
    rows = list(result["per_class"].values())
    for name, expected in {"precision": precision, "recall": recall, "f1": f1, "images": present}.items():
        assert np.allclose([row[name] for row in rows], expected, atol=1e-6)
    assert result["images"] == images
    assert ("top5" in result) == (classes > 5)
    assert np.isclose(result["top1"], hits.sum() / images)
    assert np.isclose(result["balanced_accuracy"], recall[present > 0].mean())
    assert 0 <= result["calibration_error"] <= 1


def test_the_worst_mistakes_of_any_data_set_are_drawn(images_dir):
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    labels = torch.tensor([1, 1, 0])
    files = ImageFiles([(file, 0) for file in sorted(images_dir(a=3).rglob("*.png"))])

    class Streamed(IterableDataset):
        def __iter__(self):
            return iter([files[i] for i in range(3)])

    for dataset in (files, Subset(files, range(3)), Streamed()):
        figure = draw_mistakes(dataset, probs, labels, ["a", "b"])
        captions = [axes.get_title() for axes in figure.axes if axes.images]
        names = ["00.png\n", "02.png\n"] if dataset is files else ["", ""]
        assert captions == [f"{names[0]}b, predicted\na (90 %)", f"{names[1]}a, predicted\nb (70 %)"]
    assert draw_mistakes(files, probs, torch.tensor([0, 1, 1]), ["a", "b"]).get_suptitle() == "No mistakes"


def test_a_run_and_its_exported_file_have_the_same_metrics(run_dir, tmp_path):
    loaded = load(run_dir)
    result, directory = evaluate(loaded, out=tmp_path / "eager", **OPTIONS)
    assert (result["images"], result["split"], result["tta"]) == (8, "val", 1)
    assert {file.name for file in directory.iterdir()} == {
        *("metrics.json", "per_class.csv", "confusion_matrix.png", "mistakes.png")
    }
    assert json.loads((directory / "metrics.json").read_text()) == result
    assert (directory / "per_class.csv").read_text().splitlines()[0] == "class,precision,recall,f1,images"

    class Backend(torch.nn.Module):  # as deploy.Exported is: logits, without weights that torch knows
        def __init__(self, model):
            super().__init__()
            self.run = model.__call__

        def forward(self, images):
            return self.run(images)

    other = type(loaded)(Backend(loaded.model), loaded.class_names, loaded.data_config)
    data = str(run_dir.parent / "images")
    also, _ = evaluate(other, data=data, out=tmp_path / "other", **{**OPTIONS, "batch_size": 5})
    for name in ("top1", "balanced_accuracy", "confusion_matrix"):
        assert also[name] == result[name]
    averaged, directory = evaluate(loaded, tta=8, **OPTIONS)
    assert (averaged["tta"], directory.name) == (8, "evaluation-val-tta8")


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_the_network_is_moved_back_to_its_device(run_dir, tmp_path, monkeypatch, weight):
    layer = nn.Linear(3, 2, device="meta")

    def move(model, *devices):  # from meta to the CPU, as from the CPU to a GPU
        nn.init.constant_(layer.to_empty(device="cpu").weight, weight)
        nn.init.zeros_(layer.bias)
        return launch(model, *devices)

    monkeypatch.setitem(evaluate.__globals__, "launch", move)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    loaded = Loaded(model, ["a", "b"], load(run_dir).data_config)
    with nullcontext() if weight == 0 else pytest.raises(InputError, match="computes NaN"):
        evaluate(loaded, data=str(run_dir.parent / "images"), out=tmp_path, **OPTIONS)
    assert layer.weight.is_meta


def test_all_images_of_another_data_set_without_splits_count(run_dir, images_dir, tmp_path):
    loaded, data, said = load(run_dir), images_dir(a=5, b=4), io.StringIO()
    options = {**OPTIONS, "console": Console(file=said), "data": str(data)}
    result, _ = evaluate(loaded, out=tmp_path / "other", **options)
    assert (result["images"], result["split"]) == (9, "all")
    assert "so all its images count" in said.getvalue()
    with pytest.raises(InputError, match="is not the data set of the run, so give --out too"):
        evaluate(loaded, **options)
    with pytest.raises(InputError, match=r"--split val: .* has no such images; give another by --data"):
        evaluate(loaded, split="val", out=tmp_path / "none", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_up_to_a_share(run_dir, images_dir, tmp_path, capfd, workers):
    loaded, data = load(run_dir), images_dir(**{"train/a": 1, "train/b": 1, "val/a": 3, "val/b": 3})
    options = {**OPTIONS, "data": str(data), "workers": workers, "console": None}
    whole, _ = evaluate(loaded, out=tmp_path / "whole", **options)
    broken = data / "val" / "a" / "01b.png"  # between the others, so that their numbers change
    broken.write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"1 of 7 images cannot be read, more than --max-unreadable 0.01 .*01b\.png"):
        evaluate(loaded, out=tmp_path / "refused", **options)
    left_out, _ = evaluate(loaded, out=tmp_path / "left-out", max_unreadable=0.2, **options)
    assert f"Warning: 1 image cannot be read, so left out: {broken}: " in capfd.readouterr().err
    (reason,) = left_out.pop("unreadable")
    assert reason.startswith(f"{broken}: ")
    assert whole.pop("unreadable") == []
    assert left_out.pop("calibration_error") == pytest.approx(whole.pop("calibration_error"), abs=1e-6)
    assert left_out == whole
    assert (tmp_path / "left-out" / "mistakes.png").read_bytes() == (tmp_path / "whole" / "mistakes.png").read_bytes()


def test_a_run_is_evaluated_and_predicted_in_other_precisions(run_dir, tmp_path, images_dir):
    loaded, found = load(run_dir), {}
    image = next(iter(sorted(images_dir(a=1).rglob("*.png"))))
    for precision in (None, "fp32", "bf16", "fp16"):
        result, _ = evaluate(loaded, precision=precision, out=tmp_path / str(precision), **OPTIONS)
        assert result["computed_in"] == (precision or "fp32")
        (row,) = predict(loaded, [str(image)], precision=precision, accelerator="cpu", console=Console(quiet=True)).rows
        found[precision] = dict(zip(row["top_labels"], row["top_probabilities"], strict=True))["a"]
    assert found[None] == found["fp32"]
    assert 0 < abs(found["bf16"] - found["fp32"]) < 0.05
    assert 0 < abs(found["fp16"] - found["fp32"]) < 0.01
    assert {value.dtype for value in loaded.model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_two_processes_have_the_metrics_of_one(run_dir, tmp_path):
    """8 images in batches of 3: three batches for two processes, the last of two images."""
    result, directory = evaluate(load(run_dir), out=tmp_path / "one", **OPTIONS)
    first, second = in_ranks(lambda: evaluate(load(run_dir), out=tmp_path / "two", **OPTIONS), context=FORK)
    assert (first, second) == ((result, tmp_path / "two"), None)
    for name in ("metrics.json", "mistakes.png"):
        assert (tmp_path / "two" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.slow
def test_the_command_starts_a_process_for_each_device(run_dir, tmp_path):
    result, _ = evaluate(load(run_dir), out=tmp_path / "one", **OPTIONS)
    command = [sys.executable, "-m", "patnet", "evaluate", str(run_dir), "--accelerator", "cpu", "--devices", "2"]
    command += ["--batch-size", "3", "--workers", "0", "--out", str(tmp_path / "two"), "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == result  # so it is printed once


def test_what_cannot_be_evaluated(run_dir, tmp_path, checkpoint_dir):
    loaded, others = load(run_dir), write_images(tmp_path / "others", b=2, c=2)
    (tmp_path / "file").touch()
    cases = [
        ({"accelerator": "gpu", "devices": "99"}, "--accelerator gpu --devices 99: not available here"),
        ({"split": "test"}, "--split test: data set"),
        ({"data": str(others), "out": tmp_path / "x"}, r"its classes \(b, c\) are not those of the network \(a, b\)"),
        ({"tta": 3}, "--tta 3: must be one of 1, 2, 4, 8"),
        ({"out": tmp_path / "file" / "x"}, "cannot be written"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            evaluate(loaded, **{**OPTIONS, **options})
    with pytest.raises(InputError, match="is not a run directory, so give --data and --out too"):
        evaluate(load(checkpoint_dir), **OPTIONS)
    with pytest.raises(InputError, match="has random weights"):
        evaluate(load("patnet_t0", **TINY), **OPTIONS)
