"""Batches divide the global batch size, and the batch size that is chosen fits into memory."""

from functools import partial

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from train.running import OPTIONS, QUIET, config, run

from patnet import InputError
from patnet.data.batches import Batches
from patnet.train import ClassificationData, RunDirectory, TrainConfig
from patnet.train.batch_size import candidates, choose_batch_size, largest_fitting
from patnet.train.classifier import Classifier
from patnet.train.data import available_memory
from patnet.train.run import make_trainer


def batches(devices, batch_size, global_batch_size=None):
    return Batches.of(batch_size, global_batch_size, devices)


@given(devices=st.integers(1, 12), doublings=st.integers(0, 8), size=st.integers(1, 64))
def test_the_global_batch_size_holds_or_the_error_says_what_would(devices, doublings, size):
    total = 48 * 2**doublings
    share = total // devices
    if total % devices or share % min(size, share):
        with pytest.raises(InputError, match=r"give \d+| does$"):
            batches(devices, global_batch_size=total, batch_size=size)
    else:
        found = batches(devices, global_batch_size=total, batch_size=size)
        assert found.global_size == total
        assert found.batch_size <= size


def test_batches_in_words():
    text = "global batch size 4096: 256 images x 2 accumulated on 8 devices"
    assert str(batches(8, global_batch_size=4096, batch_size=256)) == text
    assert batches(4, batch_size=64).global_size == 256
    assert batches(1, global_batch_size=8, batch_size=64).batch_size == 8
    with pytest.raises(InputError, match=r"is not divisible by 3 devices; give 4095 or 4098"):
        batches(3, global_batch_size=4096, batch_size=64)
    with pytest.raises(InputError, match=r"--batch-size 100: .* 64 does"):
        batches(1, global_batch_size=4096, batch_size=100)


@given(share=st.integers(1, 600), devices=st.integers(1, 8))
def test_every_candidate_divides_the_global_batch_size(share, devices):
    for size in candidates(share, 10**6):
        found = batches(devices, batch_size=size, global_batch_size=share * devices)
        assert (found.batch_size, found.global_size) == (size, share * devices)
    # without one they are powers of two up to the data
    assert [candidates(None, images)[-1] for images in (1, 100, 10**6)] == [2, 64, 1024]


@given(base=st.integers(0, 1000), each=st.integers(1, 50), limit=st.integers(0, 30000), extrapolate=st.booleans())
def test_the_largest_size_within_the_limit_is_chosen(base, each, limit, extrapolate):
    sizes, measured = candidates(96, 10**6), []

    def measure(size):
        measured.append(size)
        return base + each * size

    fitting = [size for size in sizes if base + each * size <= limit]
    if not fitting:
        with pytest.raises(InputError, match="not even 2 images fit"):
            largest_fitting(sizes, measure, limit, extrapolate=extrapolate)
    else:
        assert largest_fitting(sizes, measure, limit, extrapolate=extrapolate)[0] == fitting[-1]
    assert len(measured) <= (3 if extrapolate else len(fitting) + 1)


def test_other_processes_read_the_choice_from_the_run(tmp_path, monkeypatch):
    RunDirectory(tmp_path / "run").create(config("images", tmp_path / "run", batch_size=6))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    auto = config("images", tmp_path / "run", batch_size="auto")
    assert choose_batch_size(auto, ClassificationData(auto), None, 2, QUIET).batch_size == 6


def test_steps_are_measured_in_this_process_alone_where_torchrun_started_several(tmp_path, monkeypatch):
    given = {"TORCHELASTIC_RUN_ID": 1, "GROUP_RANK": 0, "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 8}
    for name, value in {**given, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    assert make_trainer("cpu", "1").world_size == 8
    assert make_trainer("cpu", "1", plugins=[LightningEnvironment()]).world_size == 1


def test_the_size_leaves_each_device_a_batch(images_dir, tmp_path):
    auto = config(images_dir(a=10, b=10), tmp_path / "run", batch_size="auto", val_fraction=0.1)
    data = ClassificationData(auto)
    sizes = [choose_batch_size(auto, data, partial(Classifier, auto), n, QUIET).batch_size for n in (1, 2, 4)]
    assert sizes == [16, 8, 4]


def test_the_module_of_the_run_is_measured_and_the_choice_is_saved(images_dir, tmp_path, capsys):
    modules = []
    given = config(
        images_dir(a=10, b=10), tmp_path / "run", batch_size="auto", progressive_size=48, progressive_epochs=1
    )

    def make(data, checkpoint):
        modules.append(Classifier(given, data, checkpoint))
        return modules[-1]

    chosen = choose_batch_size(given, ClassificationData(given), make, 1, Console(width=400))
    assert (chosen.batch_size, len(modules)) == (16, 1)
    assert 0 < available_memory() <= psutil.virtual_memory().total
    assert "Batch size 16: a step takes" in capsys.readouterr().out
    run(given.data, tmp_path / "run", batch_size="auto", epochs=1)
    assert TrainConfig.read(tmp_path / "run" / "config.yaml").batch_size == 16
    wrong = {"batch_size": "auto", "model_kwargs": {**OPTIONS["model_kwargs"], "nothing_such": 1}}
    with pytest.raises(InputError, match=r"nothing_such"):
        run(given.data, tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()
