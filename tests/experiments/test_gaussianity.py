import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gaussianity import POINTS, draw, finding, gaussianity, measure, to_markdown
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet import InputError, PATNet
from patnet.nn import MLP, PAT_ch


def of_maps(maps, **options):
    """The figures of the maps themselves: three quarters of the channels are a block's untouched ones."""
    return gaussianity(nn.Sequential(PAT_ch(maps.shape[1])), maps, **options)["layers"][0]


def sample(name, *shape):
    maps = torch.empty(*shape)
    return {"normal": maps.normal_, "exponential": maps.exponential_, "uniform": maps.uniform_}[name]()


@pytest.mark.parametrize(
    ("name", "skewness", "kurtosis", "least", "most"),
    # Of 200 exponential values; the moments of the distribution, 2 and 6, are far larger.
    [("normal", 0, 0, 0.01, 0.11), ("exponential", 1.88, 4.6, 1, 1), ("uniform", 0, -1.2, 0.95, 1)],
)
def test_maps_of_a_known_distribution_have_its_moments(name, skewness, kurtosis, least, most):
    layer = of_maps(sample(name, 200, 128, 16, 16))
    assert layer["channels"] == layer["tested"] == 96
    assert np.mean(layer["skewness"]) == pytest.approx(skewness, rel=0.1, abs=0.06)
    assert np.mean(layer["kurtosis"]) == pytest.approx(kurtosis, rel=0.2, abs=0.12)
    rejected = layer["rejected"]
    assert least <= rejected["network"]["plain"] <= most
    assert rejected["network"]["corrected"] == pytest.approx(round(rejected["network"]["plain"]), abs=0.06)
    assert rejected["normal"]["plain"] < 0.12  # the controls do not depend on the network
    assert rejected["smooth normal"]["plain"] < 0.12
    assert rejected["exponential"]["plain"] == 1


def test_smooth_normal_maps_are_rejected_as_often_as_their_control():
    """Standardising a smooth map, of which few values are independent, flattens its distribution."""
    noise = torch.randn(240, 192, 8, 8)
    smooth = F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="circular"), 5, 1)
    rejected = of_maps(smooth)["rejected"]
    assert rejected["smooth normal"]["plain"] > rejected["normal"]["plain"] + 0.1
    assert rejected["network"]["plain"] == pytest.approx(rejected["smooth normal"]["plain"], abs=0.15)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_mean_and_std_of_a_map_change_nothing(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    maps, means, stds = (torch.randn(40, 8, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    other = maps.exp() * scale * (0.1 + stds[..., :1, :1].abs()) + shift * means[..., :1, :1]
    model = nn.Sequential(PAT_ch(8)).double()
    found = [gaussianity(model, images, seed=seed)["layers"][0] for images in (maps.exp(), other)]
    for key in ("skewness", "kurtosis"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-6)


def test_constant_maps_are_left_out_and_counted():
    maps = torch.randn(60, 12, 5, 5)
    maps[:, 4] = 3.0  # in every image: never tested
    maps[::10, 5] = -1.0  # in some: other images replace them
    layer = of_maps(maps, sample=50)
    assert layer["tested"] == layer["channels"] - 1 == 8
    assert layer["skewness"][1] is None
    assert None not in layer["skewness"][2:]
    json.dumps(layer, allow_nan=False)
    result = gaussianity(nn.Sequential(PAT_ch(8)), torch.full((60, 8, 4, 4), math.pi))
    assert "| 0 of 6 | - | - | - | - | - |" in to_markdown({"configuration": "x", **result})
    draw(result)


def test_a_rare_value_in_every_map_is_furthest_from_normal():
    maps = torch.zeros(20, 8, 40, 40)
    maps[..., 20, 20] = 1.0
    assert of_maps(maps)["rejected"]["network"] == {"plain": 1.0, "corrected": 1.0}


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
def test_normal_before_an_activation_and_not_after(act):
    layers = gaussianity(nn.Sequential(MLP(32, act_layer=act)), torch.randn(240, 32, 8, 8))["layers"]
    assert [layer["point"] for layer in layers] == list(POINTS[1:])
    before, after = (layer["rejected"]["network"]["plain"] for layer in layers)
    assert before < 0.2
    assert after > 0.9


def test_every_layer_of_a_network_is_analysed():
    model = PATNet(in_chans=1, num_classes=2, embed_dim=8, depths=(1, 2, 1, 1), num_heads=2, feature_dim=8)
    images = torch.randn(40, 1, 64, 64)
    state = torch.get_rng_state()
    result = measure(iter([("small", model, images)]))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    labels = ["1.1", "2.1", "2.2", "3.1"]
    for point in POINTS:
        assert [layer["label"] for layer in result["layers"] if layer["point"] == point] == labels
    assert [(layer["label"], layer["map"]) for layer in result["left_out"]] == [("4.1", [2, 2])] * 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert gaussianity(model, images) == gaussianity(model, images) != gaussianity(model, images, seed=1)
    assert len(draw(result)["moments"].axes) == 9
    text = to_markdown(result)
    assert text.count("| untouched |") == 3
    assert "Maps of stage 4 are too small" in text
    assert finding(result).startswith("With 40 values of each channel from 40 images")


def test_what_cannot_be_tested_is_refused():
    block = nn.Sequential(PAT_ch(8))
    for model, images, message in [
        (block, torch.randn(19, 8, 8, 8), "19 values of a channel.* at least 20"),
        (block, torch.randn(60, 8, 3, 5), "fewer than 16 positions: give larger images"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(60, 1, 8, 8), "neither PAT_ch nor MLP"),
    ]:
        with pytest.raises(InputError, match=message):
            gaussianity(model, images)
