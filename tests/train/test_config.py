import pytest

from patnet import InputError
from patnet.train import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "patnet_t9"}, "did you mean 'patnet_t"),
        ({"size": 16}, "--size 16: must be at least 32"),
        ({"epochs": 0}, "--epochs"),
        ({"lr": 0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"label_smoothing": 1.5}, "--label_smoothing"),
        ({"warmup_epochs": 30}, "--warmup_epochs"),
        ({"crop_pct": 1.2}, "--crop_pct"),
        ({"size": 96, "cache_size": 64}, "--cache_size"),
        ({"workers": -1}, "--workers"),
        ({"weight_decay": -1}, "--weight_decay"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(data="elpv", out="runs", **options).check()


def test_what_is_saved_is_read_again(tmp_path):
    config = TrainConfig(data="photos", out="runs/x", lr=3e-4, weights=None, precision="bf16-mixed")
    config.check()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.read(tmp_path / "config.yaml") == config


def test_differences_that_matter():
    config = TrainConfig(data="photos", out="a")
    assert config.differences(TrainConfig(data="photos", out="b", workers=0)) == []
    assert "--lr" in config.differences(TrainConfig(data="photos", out="a", lr=1.0))[0]


@pytest.mark.parametrize("text", ["", "- a", "data: [", "data: x\nout: y\nnothing_such: 1"])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        TrainConfig.read(tmp_path / "config.yaml")
