import json
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet import InputError, PATNet
from patnet.inspection import draw_position, position_maps
from patnet.inspection.figures import render
from patnet.nn import PAT_sf, RelativePosition


def assert_maps_hold(block, term, height, width):
    """The maps hold what the attention adds from query i to key j, `term` `(heads, positions, positions)`."""
    for i, j in product(range(height * width), repeat=2):
        row, column = height - 1 + i // width - j // width, width - 1 + i % width - j % width
        assert [head[row][column] for head in block["maps"]] == pytest.approx(term[:, i, j].tolist(), rel=1e-4)


@settings(max_examples=20)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 9),
    method=st.sampled_from(["euclidean", "product"]),
    thresholds=st.sampled_from([(20.0, 40, 160.0), (1.0, 5, 11.0), (2.0, 3, 5.0)]),
)
@torch.no_grad()
def test_maps_hold_what_the_attention_adds(settled, height, width, method, thresholds):
    alpha, beta, gamma = thresholds
    position = settled(RelativePosition(2, 3, method=method, alpha=alpha, beta=beta, gamma=gamma))
    (block,) = position_maps(nn.Sequential(position), height, width)["blocks"]
    assert_maps_hold(block, position(torch.zeros(1, 2, height * width, 3), height, width)[0], height, width)
    buckets = {value for row in block["maps"][0] for value in row}
    assert block["buckets"] == block["nonzero"] == len(buckets)
    assert (block["method"], block["mode"], block["kind"]) == (method, "bias", "bias")


@torch.no_grad()
@pytest.mark.parametrize("method", ["euclidean", "product"])
def test_contextual_maps_are_means_over_queries_or_norms(settled, method):
    model = settled(nn.Sequential(PAT_sf(16, num_heads=3, position_method=method, position_mode="contextual")))
    images, position, taken = torch.randn(70, 16, 3, 4), model[0].position, []
    (block,) = position_maps(model, 3, 4, images=images)["blocks"]
    assert block["kind"] == "mean over queries"
    handle = position.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    model(images)
    handle.remove()
    mean = taken[0].mean((0, 2))[None, :, None]  # (1, heads, 1, head_dim)
    assert_maps_hold(block, position(mean.expand(-1, -1, 12, -1), 3, 4)[0], 3, 4)
    (block,) = position_maps(model, 3, 4)["blocks"]
    assert block["kind"] == "norm"
    parts = [position(unit.expand(1, 3, 12, -1), 3, 4)[0] for unit in torch.eye(mean.shape[-1])]
    assert_maps_hold(block, torch.stack(parts).norm(dim=0), 3, 4)


@pytest.mark.parametrize("mode", ["bias", "contextual"])
def test_an_untrained_and_a_trained_network_are_counted_and_drawn(mode):
    model = PATNet(num_classes=2, embed_dim=8, depths=(1, 1, 1, 2), num_heads=2, feature_dim=8, position_mode=mode)
    result = position_maps(model, 3, 4)
    assert result["untrained"]
    assert [(block["label"], block["nonzero"]) for block in result["blocks"]] == [("4.1", 0), ("4.2", 0)]
    assert not torch.tensor([block["maps"] for block in result["blocks"]]).any()
    assert "not trained" in draw_position(result).get_suptitle()
    with torch.no_grad():
        model.stages[3].blocks[1].mixer.position.table[..., 41] = 0.5  # neighbours, Euclidean
    result = position_maps(model, 2, 5)
    assert not result["untrained"]
    assert [(block["nonzero"], block["buckets"]) for block in result["blocks"]] == [(0, 5), (1, 5)]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert render(draw_position(result)).width == 990
    assert model.training


def test_networks_and_sizes_without_maps_are_refused():
    contextual = nn.Sequential(PAT_sf(16, num_heads=3, position_mode="contextual"))
    without = nn.Sequential(PAT_sf(16, num_heads=3, position_method="none"))
    for network, height, images, message in (
        (contextual, 0, None, "a map of 0x3 has no offsets"),
        (without, 2, None, "no relative positions"),
        (contextual, 2, [], "no images to take queries from"),
        (contextual, 2, [torch.zeros(3)], "images must be a tensor"),
    ):
        with pytest.raises(InputError, match=message):
            position_maps(network, height, 3, images=images)
