import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patnet import InputError
from patnet.train import TrainConfig
from patnet.train.classifier import make_optimizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "patnet_t9"}, "did you mean 'patnet_t"),
        ({"opt": "adamv"}, "timm has no such optimiser .did you mean"),
        ({"img_size": 16}, "--img-size 16: must be an integer of at least 32"),
        ({"epochs": 0}, "--epochs 0: must be an integer above 0"),
        ({"epochs": "many"}, "--epochs many: must be an integer above 0"),
        ({"lr": 0}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"smoothing": 1.5}, r"--smoothing 1.5: must be a number in \[0, 1\]"),
        ({"crop_pct": 1.2}, "--crop-pct"),
        ({"workers": -1}, "--workers"),
        ({"weight_decay": -1}, "--weight-decay"),
        ({"layer_decay": 1.5}, "--layer-decay 1.5: must be a number above 0 and at most 1 or null"),
        ({"mixup": -1}, "--mixup"),
        ({"clip_grad": 0}, "--clip-grad"),
        ({"batch_size": "all"}, "--batch-size all: must be an integer above 0 or auto"),
        ({"precision": "64"}, "--precision 64: must be 32-true, 16-mixed, bf16-mixed"),
        ({"scale": [0.5]}, "--scale .*: must be 2 values, each a number above 0"),
        ({"scale": [0.9, 0.5]}, "give the smaller share first"),
        ({"model_kwargs": 3}, "--model-kwargs 3: must be a mapping"),
        ({"img_size": 96, "cache_size": 64}, "--cache-size 64: must be at least --img-size 96"),
        ({"mixup": 0.2, "batch_size": 5}, "must be even for --mixup"),
        ({"progressive_epochs": 3}, "--progressive-size and --progressive-epochs: belong together"),
        ({"progressive_size": 64}, "--progressive-size and --progressive-epochs: belong together"),
        ({"mean": [0.5, 0.5, 0.5]}, "--mean and --std: belong together"),
        ({"opt": "adahessian"}, "--opt adahessian: needs second derivatives"),
        ({"balance": "sampling", "aug_repeats": 3}, "choose one"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(data="elpv", out="runs", **options).check()


def test_what_is_saved_is_read_again(tmp_path):
    config = TrainConfig(data="images", out="runs/x", lr=3e-4, scale=(0.2, 0.9), model_kwargs={"depths": [1, 2]})
    config.check()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.read(tmp_path / "config.yaml") == config


def test_differences_that_matter():
    config = TrainConfig(data="images", out="a")
    assert config.differences(TrainConfig(data="images", out="b", workers=0)) == []
    (line,) = config.differences(TrainConfig(data="images", out="a", lr=1.0))
    assert line == "--lr is 0.001 there and 1.0 here"


@pytest.mark.parametrize(
    "text", ["", "- a", "data: [", "data: x\nout: y\nnothing_such: 1", "data: x\nout: y\nlr: fast"]
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml: not the configuration of a run of patnet train"):
        TrainConfig.read(tmp_path / "config.yaml")


@given(
    epochs=st.integers(1, 20),
    per_epoch=st.integers(1, 30),
    warmup=st.none() | st.floats(0, 30),
    lr=st.floats(1e-4, 1),
    min_lr=st.floats(1e-8, 1e-5),
)
def test_the_learning_rate_rises_and_then_falls_to_its_minimum(epochs, per_epoch, warmup, lr, min_lr):
    config = TrainConfig(data="", out="", epochs=epochs, warmup_epochs=warmup, lr=lr, min_lr=min_lr)
    assert config.warmup < epochs
    steps = epochs * per_epoch
    schedule = make_optimizer(config, torch.nn.Linear(1, 1), steps)["lr_scheduler"]["scheduler"]
    rates = []
    for step in range(steps + 1):
        schedule.step_update(step)
        rates.append(schedule.optimizer.param_groups[0]["lr"])
    top = round(steps * config.warmup / epochs)
    if top < steps:
        assert math.isclose(rates[top], lr, rel_tol=1e-6)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))
    if steps - top > 1:
        assert math.isclose(rates[-1], min_lr, rel_tol=1e-6)
