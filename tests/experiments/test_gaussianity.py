import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from patnet import InputError, PATNet
from patnet.experiments.gaussianity import (
    POINTS,
    _Sample,
    draw_histograms,
    draw_moments,
    find_layers,
    gaussianity,
    to_markdown,
)
from patnet.nn import MLP, PAT_ch
from patnet.train.figures import save_figure


def of_maps(maps, **options):
    """The figures of maps as they are: the untouched part of a block takes three quarters of the channels."""
    return gaussianity(nn.Sequential(PAT_ch(maps.shape[1])), maps, **options)["layers"][0]


def draw(name, *shape):
    maps = torch.empty(*shape)
    return {"normal": maps.normal_, "exponential": maps.exponential_, "uniform": maps.uniform_}[name]()


@pytest.mark.parametrize(
    ("name", "skewness", "kurtosis", "least", "most"),
    # Of 200 exponential values, whose moments are far below those of the whole distribution, 2 and 6.
    [("normal", 0, 0, 0.01, 0.11), ("exponential", 1.88, 4.6, 1, 1), ("uniform", 0, -1.2, 0.95, 1)],
)
def test_maps_of_a_known_distribution_have_its_moments(name, skewness, kurtosis, least, most):
    layer = of_maps(draw(name, 60, 256, 16, 16))
    assert layer["channels"] == layer["tested"] == 192
    assert np.mean(layer["skewness"]) == pytest.approx(skewness, rel=0.1, abs=0.06)
    assert np.mean(layer["kurtosis"]) == pytest.approx(kurtosis, rel=0.2, abs=0.12)
    assert least <= layer["rejected"]["maps"]["plain"] <= most
    assert layer["rejected"]["maps"]["corrected"] == pytest.approx(round(layer["rejected"]["maps"]["plain"]), abs=0.06)


def test_known_maps_stand_beside_whatever_the_network_computes():
    for name in ("exponential", "normal"):
        rejected = of_maps(draw(name, 60, 128, 16, 16))["rejected"]
        assert rejected["normal"]["plain"] < 0.12
        assert rejected["normal, as smooth"]["plain"] < 0.12
        assert rejected["exponential"]["plain"] == 1


def test_smooth_normal_maps_are_not_held_for_other_than_their_control():
    """Few values of a smooth map are independent, and standardising it flattens what is left of the normal shape."""
    noise = torch.randn(80, 192, 8, 8)
    smooth = F.avg_pool2d(F.pad(noise, (2, 2, 2, 2), mode="circular"), 5, 1)
    rejected = of_maps(smooth)["rejected"]
    assert rejected["normal, as smooth"]["plain"] > rejected["normal"]["plain"] + 0.1
    assert rejected["maps"]["plain"] == pytest.approx(rejected["normal, as smooth"]["plain"], abs=0.15)


@settings(max_examples=10)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_what_the_attention_keeps_of_a_map_changes_nothing(seed, scale, shift):
    """Mean and deviation of each map, which are what mean and deviation say of it."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(12, 8, 4, 5, generator=generator, dtype=torch.float64).exp()
    deviations = scale * (0.1 + torch.rand(12, 8, 1, 1, generator=generator, dtype=torch.float64))
    means = shift * torch.randn(12, 8, 1, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(PAT_ch(8)).double()
    one, other = (
        gaussianity(model, pictures, sample=20, seed=seed)["layers"][0]
        for pictures in (maps, deviations * maps + means)
    )
    for key in ("skewness", "kurtosis", "p"):
        assert one[key] == pytest.approx(other[key], rel=1e-6)


def test_constant_maps_are_left_out_and_counted():
    maps = torch.randn(60, 12, 5, 5)
    maps[:, 4] = 3.0  # in every picture: never tested
    maps[::10, 5] = -1.0  # in some: others of its values are taken
    layer = of_maps(maps, sample=100)
    assert layer["tested"] == layer["channels"] - 1 == 8
    assert layer["p"][1] is None
    assert layer["skewness"][1] is None
    assert None not in layer["p"][2:]
    assert json.loads(json.dumps(layer, allow_nan=False)) == layer


def test_a_rare_value_in_every_map_is_as_far_from_normal_as_can_be():
    maps = torch.zeros(20, 8, 40, 40)
    maps[..., 20, 20] = 1.0
    assert of_maps(maps, sample=20, per_picture=1)["p"] == [0.0] * 6


def test_normal_before_an_activation_and_not_after():
    for act in (nn.ReLU, nn.GELU):
        model = nn.Sequential(MLP(32, act_layer=act))
        layers = gaussianity(model, torch.randn(60, 32, 8, 8))["layers"]
        assert [layer["point"] for layer in layers] == list(POINTS[1:])
        before, after = (layer["rejected"]["maps"]["plain"] for layer in layers)
        assert before < 0.2
        assert after > 0.9


def test_values_come_from_all_of_many_pictures():
    generator = torch.Generator().manual_seed(0)
    drawn = _Sample(100, 4, generator)
    for _ in range(10):
        drawn.add(torch.randn(30, 2, 4, 4))
    for _ in range(10):
        drawn.add(torch.randn(30, 2, 4, 4).exp())
    assert drawn.values.shape == (4, 2, 100)
    assert len(drawn.keys) == 100
    again = _Sample(2400, 4, generator)  # keeps all
    shares = []
    for i in range(20):
        again.add(torch.randn(30, 1, 4, 4))
        shares.append((again.keys < drawn.keys.max()).sum().item())
        assert again.values.shape[2] == min(120 * (i + 1), 2400)
    assert drawn.keys.max() == pytest.approx(100 / 2400, rel=0.4)  # the least keys of all that were drawn
    assert shares[-1] == pytest.approx(100, rel=0.5)


@pytest.fixture
def small():
    return PATNet(in_chans=1, num_classes=2, embed_dim=8, depths=(1, 2, 1, 1), num_heads=2, feature_dim=8)


def test_every_layer_of_a_network_is_found(small, tmp_path):
    pictures = torch.randn(20, 1, 64, 64)
    before = torch.get_rng_state()
    result = gaussianity(small, pictures, sample=40)
    assert torch.equal(before, torch.get_rng_state())
    assert small.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    places = [(layer["point"], layer["label"]) for layer in result["layers"]]
    labels = ["1.1", "2.1", "2.2", "3.1"]
    assert [label for point, label in places if point == "untouched"] == labels
    assert [label for point, label in places if point == "after activation"] == labels
    assert [(layer["layer"], layer["map"]) for layer in result["left_out"]] == [("stages.3.blocks.0.mlp", [2, 2])] * 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert gaussianity(small, DataLoader(TensorDataset(pictures, torch.zeros(20)), batch_size=32), sample=40) == result

    examples = [e for e in result["examples"] if (e["point"], e["stage"]) == ("untouched", 2)]
    assert [e["rank"] for e in examples] == ["nearest", "median", "farthest"]
    assert [e["p"] for e in examples] == sorted((e["p"] for e in examples), reverse=True)
    for number, figure in enumerate([draw_moments(result), draw_histograms(result, "after activation")]):
        with Image.open(save_figure(figure, tmp_path / f"{number}.png", dpi=50)) as picture:
            assert min(picture.size) > 300
    assert len(draw_histograms(result).axes) == 9
    text = to_markdown(result)
    assert text.count("| untouched |") == 3
    assert "from 20 pictures" in text
    assert "nor anything of stage 4" in text


def test_the_seed_draws_the_values():
    maps = torch.randn(10, 8, 4, 4)
    assert of_maps(maps, sample=20) == of_maps(maps, sample=20) != of_maps(maps, sample=20, seed=1)


def test_layers_carry_their_stage_and_number(small):
    assert [(layer.name, layer.label) for layer in find_layers(small, PAT_ch)][2] == ("stages.1.blocks.1.mixer", "2.2")
    assert [layer.label for layer in find_layers(nn.Sequential(MLP(4), MLP(4)), MLP)] == ["1.1", "1.2"]


def test_what_cannot_be_tested_is_said(small):
    block = nn.Sequential(PAT_ch(8))
    for model, pictures, options, message in [
        (small, torch.randn(49, 1, 64, 64), {}, "49 pictures give 196 values .* give at least 50 pictures"),
        (small, torch.randn(0, 1, 64, 64), {}, "0 pictures give 0 values"),
        (block, torch.randn(60, 8, 3, 5), {}, "of 3x5 values, are too small"),
        (block, torch.randn(60, 8, 8, 8), {"sample": 10}, "needs at least 20 values"),
        (block, torch.randn(60, 8, 8, 8), {"per_picture": 17}, "between 1 and 16"),
        (block, torch.randn(8, 8, 8), {}, "must be a tensor"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(60, 1, 8, 8), {}, "neither PAT_ch nor MLP"),
    ]:
        with pytest.raises(InputError, match=message):
            gaussianity(model, pictures, **options)
    with pytest.raises(InputError, match="nothing was tested there; choose from untouched"):
        draw_histograms(gaussianity(block, torch.randn(60, 8, 8, 8)), "after")


def test_a_network_of_constants_has_no_examples():
    result = gaussianity(nn.Sequential(PAT_ch(8)), torch.full((60, 8, 4, 4), math.pi))
    assert result["layers"][0]["tested"] == 0
    assert result["examples"] == []
    assert "| 0 of 6 | - | - | - | - | - |" in to_markdown(result)
    draw_moments(result)
