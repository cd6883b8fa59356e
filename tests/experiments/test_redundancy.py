import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redundancy import Covariance, correlation_of, draw, effective_rank, finding, random_copy, redundancy, to_markdown
from torch import nn

from patnet import InputError, PATNet
from patnet.nn import MLP, PATBlock


def of_maps(maps, **options):
    """The figures of the maps themselves: they are the input of a block."""
    return redundancy(nn.Sequential(PATBlock(nn.Identity(), MLP(maps.shape[1]))), maps, **options)["layers"][0]


@given(eigenvalues=st.lists(st.floats(0, 10), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_rank_is_between_one_and_the_channels_in_any_basis(eigenvalues, seed):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    covariance = basis * eigenvalues @ basis.T
    if max(eigenvalues) > 1e-6:
        assert 1 - 1e-9 <= effective_rank(covariance) <= len(eigenvalues) + 1e-6
        assert effective_rank(covariance) == pytest.approx(effective_rank(np.diag(eigenvalues)), rel=1e-6)
    assert effective_rank(0 * covariance) == 0


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5), offset=st.floats(-1e6, 1e6))
def test_covariance_over_batches_is_that_of_all_values(sizes, offset):
    values = torch.randn(sum(sizes) + 2, 3, dtype=torch.float64) * torch.tensor([1, 20, 0.1]) + offset
    covariance = Covariance()
    for part in values.split([*sizes, 2]):
        covariance.add(part)
    np.testing.assert_allclose(covariance.compute(), np.cov(values.numpy().T), rtol=1e-6, atol=1e-6)
    correlation = correlation_of(np.cov(values.numpy().T))
    np.testing.assert_allclose(correlation, np.corrcoef(values.numpy().T), atol=1e-9)


def test_copies_of_a_channel_are_similar_and_independent_channels_are_not():
    maps = torch.randn(40, 4, 8, 8)
    copies = of_maps(torch.cat((maps, -3 * maps, 0.1 * maps + 7), dim=1))
    assert (copies["channels"], copies["values"]) == (12, 40 * 64)
    assert copies["network"]["effective_rank"] == pytest.approx(4, rel=0.01)
    assert copies["network"]["nearest"]["5"] == pytest.approx(1)
    assert copies["shuffled"]["effective_rank"] > 11.5
    assert copies["shuffled"]["nearest"]["95"] < 0.3
    maps = torch.randn(40, 6, 8, 8)
    maps[:, 2:] *= 1e-3  # whatever their variance
    independent = of_maps(maps)["network"]
    assert independent["effective_rank"] == pytest.approx(6, rel=0.02)
    assert independent["effective_rank_of_covariance"] == pytest.approx(2, rel=0.02)
    assert independent["nearest"]["95"] < 0.1


def test_shuffling_separates_channels_that_share_positions_or_images():
    """All channels and images have one pattern, and all channels of an image one brightness."""
    maps = torch.randn(64, 8, 8, 8)
    maps[..., :4] += 3
    maps += 3 * torch.randn(64, 1, 1, 1)
    layer = of_maps(maps)
    assert layer["network"]["correlation"]["5"] > 0.8
    assert layer["shuffled"]["correlation"]["50"] < 0.15


def test_constant_channels_are_counted():
    maps = torch.randn(20, 5, 4, 4)
    maps[:, 1:3] = 0.5
    layer = of_maps(maps)
    assert layer["network"]["constant"] == 2
    assert layer["network"]["effective_rank"] == pytest.approx(3, rel=0.05)
    flat = of_maps(torch.zeros(20, 3, 4, 4))
    assert flat["network"]["effective_rank"] == 0
    assert flat["network"]["correlation"] is None
    json.dumps([layer, flat], allow_nan=False)


@pytest.fixture
def small(settled):
    return settled(PATNet(in_chans=1, num_classes=2, embed_dim=8, depths=(1, 2, 1, 1), num_heads=2, feature_dim=8))


def test_random_weights_are_those_of_a_new_network(small):
    images = torch.randn(8, 1, 64, 64)
    weights, state = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    other, same, another = (random_copy(small, images, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, weights[name]) for name, value in small.state_dict().items())
    assert not other.training
    assert not other.stages[3].blocks[0].mixer.position.table.any()
    assert other.stem.conv.weight.std().item() == pytest.approx(0.02, rel=0.2)
    with torch.no_grad():
        after_stem = other.stem(images)
    torch.testing.assert_close(after_stem.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(after_stem.std((0, 2, 3)), torch.ones(8), atol=0.03, rtol=0)
    assert torch.equal(same.stem.conv.weight, other.stem.conv.weight)
    assert not torch.equal(another.stem.conv.weight, other.stem.conv.weight)


def test_every_block_of_a_network_is_described(small):
    small.train()
    result = redundancy(small, torch.randn(20, 1, 64, 64), positions=16)
    assert small.training
    layers = [(layer["label"], layer["channels"], layer["values"]) for layer in result["layers"]]
    expected = [("1.1", 8, 320), ("2.1", 16, 320), ("2.2", 16, 320), ("3.1", 32, 320), ("4.1", 64, 80)]
    assert layers == expected
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(draw(result)["rank"].axes) == 2
    assert finding(result).startswith("Over 20 images the effective rank is")
    assert "| 2.2 | 16 |" in to_markdown({"configuration": "x", **result})


def test_what_cannot_be_described_is_refused(small):
    for model, images, message in [
        (small, torch.randn(16, 1, 64, 64), "16 images give 64 values in stages.3.* give at least 17 images"),
        (small, torch.randn(1, 1, 64, 64), "1 images cannot be shuffled"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(20, 1, 8, 8), "no PATBlock"),
    ]:
        with pytest.raises(InputError, match=message):
            redundancy(model, images)
