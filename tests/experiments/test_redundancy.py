import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from patnet import InputError, PATNet
from patnet.experiments.redundancy import (
    _Covariance,
    correlation_of,
    draw_correlations,
    draw_redundancy,
    effective_rank,
    participation_ratio,
    redundancy,
    to_markdown,
    untrained_like,
)
from patnet.nn import MLP, PATBlock
from patnet.train.figures import save_figure


def of_maps(maps, **options):
    """The figures of maps as they are: they are the input of a block."""
    return redundancy(nn.Sequential(PATBlock(nn.Identity(), MLP(maps.shape[1]))), maps, **options)["layers"][0]


@given(k=st.integers(1, 8), copies=st.integers(1, 6), scale=st.floats(1e-3, 1e3))
def test_rank_of_k_channels_copied_is_k(k, copies, scale):
    covariance = scale * np.kron(np.ones((copies, copies)), np.eye(k))
    assert effective_rank(covariance) == pytest.approx(k)
    assert participation_ratio(covariance) == pytest.approx(k)


@given(eigenvalues=st.lists(st.floats(0, 10), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_ranks_lie_between_one_and_the_number_of_channels_whatever_the_axes(eigenvalues, seed):
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    covariance = axes * eigenvalues @ axes.T
    ratio, rank = participation_ratio(covariance), effective_rank(covariance)
    if max(eigenvalues) > 1e-6:
        assert 1 - 1e-9 <= ratio <= rank + 1e-9 <= len(eigenvalues) + 1e-6
        assert rank == pytest.approx(effective_rank(np.diag(eigenvalues)), rel=1e-6)
    assert effective_rank(0 * covariance) == participation_ratio(0 * covariance) == 0


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5), offset=st.floats(-1e6, 1e6))
def test_covariance_of_parts_is_that_of_the_whole(sizes, offset):
    values = torch.randn(sum(sizes), 3, dtype=torch.float64) + offset
    covariance = _Covariance()
    for part in values.split(sizes):
        covariance.add(part)
    np.testing.assert_allclose(covariance(), np.cov(values.numpy().T), rtol=1e-6, atol=1e-6)


def test_copies_of_a_channel_are_alike_and_shuffled_are_not():
    maps = torch.randn(40, 4, 8, 8)
    layer = of_maps(torch.cat((maps, -3 * maps, 0.1 * maps + 7), dim=1))
    assert layer["channels"] == 12
    assert layer["network"]["effective_rank"] == pytest.approx(4, rel=0.01)
    assert layer["network"]["nearest"]["5"] == pytest.approx(1)
    assert sum(layer["network"]["histogram"]) == 66
    assert layer["network"]["histogram"][-1] == 12  # each of 4 with two others, and those with each other
    assert layer["shuffled"]["effective_rank"] > 11.5
    assert layer["shuffled"]["nearest"]["95"] < 0.3


def test_independent_channels_are_not_alike():
    layer = of_maps(torch.randn(40, 16, 8, 8))
    assert layer["values"] == 40 * 64
    assert layer["network"]["effective_rank"] == pytest.approx(16, rel=0.02)
    assert layer["network"]["effective_rank_of_covariance"] == pytest.approx(16, rel=0.02)
    assert layer["network"]["correlation"]["50"] < 0.03
    assert layer["network"]["nearest"]["95"] < 0.1


def test_channels_of_little_variance_count_only_where_all_count_the_same():
    maps = torch.randn(40, 6, 8, 8)
    maps[:, 2:] *= 1e-3
    figures = of_maps(maps)["network"]
    assert figures["effective_rank"] == pytest.approx(6, rel=0.02)
    assert figures["participation_ratio"] == pytest.approx(6, rel=0.02)
    assert figures["effective_rank_of_covariance"] == pytest.approx(2, rel=0.02)
    assert figures["participation_ratio_of_covariance"] == pytest.approx(2, rel=0.02)


def test_shuffling_parts_channels_that_share_places_or_pictures():
    """A pattern that all channels and pictures have at the same place, and a brightness that all of a picture have."""
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


def test_correlations_are_numpys():
    values = np.random.default_rng(0).normal(size=(4, 50)) * [[1], [20], [0.1], [3]]
    np.testing.assert_allclose(correlation_of(np.cov(values)), np.corrcoef(values))


@pytest.fixture
def small(settled):
    return settled(PATNet(in_chans=1, num_classes=2, embed_dim=8, depths=(1, 2, 1, 1), num_heads=2, feature_dim=8))


def test_random_weights_are_those_of_a_new_network(small):
    images = torch.randn(8, 1, 64, 64)
    given_weights, given_state = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    other = untrained_like(small, images)
    assert torch.equal(given_state, torch.get_rng_state())
    for name, value in small.state_dict().items():
        assert torch.equal(value, given_weights[name])
    assert not other.training
    assert not other.stages[3].blocks[0].mixer.position.table.any()
    assert other.stem.conv.weight.std().item() == pytest.approx(0.02, rel=0.2)
    with torch.no_grad():
        after_stem = other.stem(images)
    torch.testing.assert_close(after_stem.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(after_stem.std((0, 2, 3)), torch.ones(8), atol=0.03, rtol=0)
    same, another = untrained_like(small, images), untrained_like(small, images, seed=1)
    assert torch.equal(same.stem.conv.weight, other.stem.conv.weight)
    assert not torch.equal(another.stem.conv.weight, other.stem.conv.weight)


def test_every_block_of_a_network_is_described(small, tmp_path):
    pictures = torch.randn(20, 1, 64, 64)
    small.train()
    small.stages[1].eval()
    modes = [module.training for module in small.modules()]
    result = redundancy(small, pictures, positions=16)
    assert [module.training for module in small.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    assert [layer["label"] for layer in result["layers"]] == ["1.1", "2.1", "2.2", "3.1", "4.1"]
    assert [layer["channels"] for layer in result["layers"]] == [8, 16, 16, 32, 64]
    assert [layer["values"] for layer in result["layers"]] == [320, 320, 320, 320, 80]
    assert [(matrix["label"], matrix["convolved"]) for matrix in result["matrices"]] == [
        ("1.1", 2),
        ("2.2", 4),
        ("3.1", 8),
        ("4.1", 16),
    ]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert redundancy(small, iter([pictures]), positions=16)["pictures"] == 20
    for number, figure in enumerate((draw_redundancy(result), draw_correlations(result))):
        with Image.open(save_figure(figure, tmp_path / f"{number}.png", dpi=50)) as picture:
            assert min(picture.size) > 200
    text = to_markdown(result)
    assert "Over 20 pictures the effective rank is" in text
    assert "| 2.2 | 16 |" in text


def test_what_cannot_be_described_is_said(small):
    for model, pictures, options, message in [
        (small, torch.randn(16, 1, 64, 64), {}, "16 pictures give 64 values in stages.3.* give at least 17 pictures"),
        (small, torch.randn(0, 1, 64, 64).split(1)[1:], {}, "there are no pictures"),
        (small, torch.randn(20, 1, 64, 64).split(1), {}, "batches of one picture"),
        (small, torch.randn(20, 1, 64, 64), {"positions": 0}, "at least one position"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(20, 1, 8, 8), {}, "no blocks"),
    ]:
        with pytest.raises(InputError, match=message):
            redundancy(model, pictures, **options)
