import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from patnet import InputError, PATNet
from patnet.inspection import draw_position, position_maps
from patnet.inspection.figures import render
from patnet.nn import PAT_sf, RelativePosition

DEFAULT = (20.0, 40, 160.0)


def g(d, alpha, beta, gamma):
    """Equation 18 of iRPE, in Python's double precision."""
    if abs(d) <= alpha:
        return round(d)
    far = round(alpha + math.log(abs(d) / alpha) / math.log(gamma / alpha) * (beta - alpha))
    return int(math.copysign(min(beta, far), d))


def bucket(dr, dc, method, alpha, beta, gamma):
    if method == "product":
        return (g(dr, alpha, beta, gamma) + beta) * (2 * beta + 1) + g(dc, alpha, beta, gamma) + beta
    return g(round(math.sqrt(dr**2 + dc**2)), alpha, beta, gamma) + beta


@settings(max_examples=20)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 9),
    method=st.sampled_from(["euclidean", "product"]),
    thresholds=st.sampled_from([DEFAULT, (1.0, 5, 11.0), (2.0, 3, 5.0)]),
)
def test_maps_hold_the_table_at_the_bucket_of_each_offset(settled, height, width, method, thresholds):
    alpha, beta, gamma = thresholds
    position = settled(RelativePosition(2, 3, method=method, alpha=alpha, beta=beta, gamma=gamma))
    (block,) = position_maps(nn.Sequential(position), height, width)["blocks"]
    offsets = [[(dr, dc) for dc in range(1 - width, width)] for dr in range(1 - height, height)]
    buckets = torch.tensor([[bucket(*offset, method, *thresholds) for offset in row] for row in offsets])
    torch.testing.assert_close(torch.tensor(block["maps"]), position.table.detach()[:, buckets])
    assert block["buckets"] == block["nonzero"] == len(buckets.unique())
    assert (block["method"], block["mode"], block["kind"]) == (method, "bias", "bias")
    # and it is what the attention adds from query i to key j
    term = position(torch.zeros(1, 2, height * width, 3), height, width)[0]
    for i in range(height * width):
        for j in range(height * width):
            dr, dc = i // width - j // width, i % width - j % width
            assert block["maps"][1][dr + height - 1][dc + width - 1] == pytest.approx(term[1, i, j].item())


@pytest.mark.parametrize("method", ["euclidean", "product"])
def test_contextual_maps_are_means_over_queries_or_norms(settled, method):
    model = settled(nn.Sequential(PAT_sf(16, num_heads=3, position_method=method, position_mode="contextual")))
    images = torch.randn(70, 16, 3, 4)
    (block,) = position_maps(model, 3, 4, images=images)["blocks"]
    assert block["kind"] == "mean over queries"
    taken = []
    handle = model[0].position.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    added = (taken[0] @ model[0].position.table).mean((0, 2))  # (heads, buckets)
    for dr, dc in [(0, 0), (-2, 3), (1, -1)]:
        expected = added[:, bucket(dr, dc, method, *DEFAULT)].tolist()
        assert [head[dr + 2][dc + 3] for head in block["maps"]] == pytest.approx(expected, rel=1e-4)
    (block,) = position_maps(model, 3, 4)["blocks"]
    assert block["kind"] == "norm"
    norms = model[0].position.table.norm(dim=1)[:, bucket(-2, 3, method, *DEFAULT)].tolist()
    assert [head[0][6] for head in block["maps"]] == pytest.approx(norms)


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
    with pytest.raises(InputError, match="a map of 0x3 has no offsets"):
        position_maps(contextual, 0, 3)
    with pytest.raises(InputError, match="no relative positions"):
        position_maps(nn.Sequential(PAT_sf(16, num_heads=3, position_method="none")), 2, 2)
    with pytest.raises(InputError, match="no images to take queries from"):
        position_maps(contextual, 2, 2, images=[])
    with pytest.raises(InputError, match="images must be a tensor"):
        position_maps(contextual, 2, 2, images=[torch.zeros(3)])
