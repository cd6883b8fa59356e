"""What `inspect_network` gives, against the same computed from the layers' weights."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from patnet import InputError, PATNet, fuse
from patnet.inspection import inspect_network
from patnet.nn import CHANNEL_ATTENTIONS, MLP, SPATIAL_ATTENTIONS, PAT_ch, PATBlock, PConv

SMALL = {"num_classes": 3, "embed_dim": 16, "depths": (1, 2, 1, 2), "num_heads": 2, "feature_dim": 8}


@pytest.fixture
def network(settled):
    return lambda **options: settled(PATNet(**SMALL | options))


@pytest.fixture
def image():
    return torch.randn(1, 3, 96, 64)


@torch.no_grad()
def inputs_of(model, modules, image):
    """The first inputs of modules, taken with hooks of the test's own."""
    taken = {}
    handles = [m.register_forward_pre_hook(lambda _, args, m=m: taken.update({m: args[0]})) for m in modules]
    model(image)
    for handle in handles:
        handle.remove()
    return [taken[m] for m in modules]


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@torch.no_grad()
def test_channel_gates_are_those_of_the_layer_and_blocks_are_labelled(network, image):
    model = network()
    mixer = model.stages[1].blocks[1].mixer
    (x,) = inputs_of(model, [mixer.attn], image)
    seen = inspect_network(model, image)
    gates, mean, std = seen.channel_gates["2.2"], x.mean((2, 3)), x.std((2, 3))
    mixed = F.conv2d(torch.stack((mean, std), -1).unsqueeze(2), mixer.attn.mix.weight)
    gate = F.hardsigmoid(mixer.attn.norm(mixed))
    for found, expected in ((gates.gate, gate), (gates.mean, mean), (gates.std, std)):
        np.testing.assert_allclose(found, expected.flatten().numpy(), rtol=1e-4, atol=1e-5)
    labels = ["1.1", "2.1", "2.2", "3.1", "4.1", "4.2"]
    assert list(seen.spatial_gates) == list(seen.shares) == labels
    assert [*seen.channel_gates, *seen.attention] == labels
    assert (seen.positions["height"], seen.positions["width"], seen.missing) == (3, 2, [])


def test_layers_have_the_label_of_their_block_and_others_follow():
    mixed = [PATBlock(PConv(16), MLP(16, spatial_attn="none")), PATBlock(PAT_ch(16), MLP(16))]
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    seen = inspect_network(nn.Sequential(PAT_ch(16), *mixed, *classifier), torch.randn(1, 16, 8, 8))
    assert list(seen.channel_gates) == ["1.3", "1.2"]
    assert list(seen.spatial_gates) == ["1.2"]
    gates = {label: (s.mixer, s.channel_gates is None, s.spatial_gates is None) for label, s in seen.shares.items()}
    assert gates == {"1.1": ("PConv", True, True), "1.2": ("PAT_ch", False, False)}


@torch.no_grad()
def test_shares_are_norms_of_inputs_and_outputs(network, image):
    model = network()
    block = model.stages[0].blocks[0]
    x, spatial = inputs_of(model, [block, block.mlp.attn], image)
    y, after = block.mixer(x), block(x)
    gated = block.mixer.attn(x[:, 4:])
    x1 = spatial[:, :8]
    changed = block.mlp.attn.gate(x1) * x1 - x1
    shares = inspect_network(model, image).shares["1.1"]
    assert (shares.mixer, shares.channels, shares.convolved) == ("PAT_ch", 16, 0.25)
    expected = {
        "energy_in": x[:, :4].square().sum() / x.square().sum(),
        "energy_out": y[:, :4].square().sum() / y.square().sum(),
        "mixer_over_input": y.norm() / x.norm(),
        "added": (after - x).norm() / x.norm(),
        "channel_gates": (gated - x[:, 4:]).norm() / x[:, 4:].norm(),
        "spatial_gates": changed.norm() / x1.norm(),
    }
    found = {name: getattr(shares, name) for name in expected}
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4)


@torch.no_grad()
def test_the_answer_is_equal_to_the_bit_and_nothing_stays(network, image):
    model = network()
    before = model(image)[0].numpy()
    model.train()
    model.stages[1].eval()
    seen = inspect_network(model, image)
    assert count_hooks(model) == 0
    assert (model.training, model.stages[1].blocks[0].training) == (True, False)
    assert np.array_equal(before, seen.logits)
    np.testing.assert_allclose(seen.probabilities, torch.from_numpy(before).double().softmax(0).numpy())


@pytest.mark.parametrize("mixer", ["pat_sf", "full_sf", "pat_window"])
def test_a_fused_network_shows_the_same_except_what_is_folded(network, image, mixer):
    model = network(mixers=("pat_ch", "full_ch", "pat_ch", mixer))
    seen, fused = inspect_network(model, image), inspect_network(fuse(model), image)
    assert list(fused.shares) == list(seen.shares)
    for label, shares in seen.shares.items():
        assert fused.shares[label].spatial_gates == pytest.approx(shares.spatial_gates, rel=1e-3)
        assert fused.shares[label].convolved == shares.convolved
    for name in ("spatial_gates", "attention"):
        for label, values in getattr(seen, name).items():
            np.testing.assert_allclose(getattr(fused, name)[label], values, atol=1e-4)
    for label, gates in seen.channel_gates.items():
        np.testing.assert_allclose(fused.channel_gates[label].gate, gates.gate, atol=1e-4)
        np.testing.assert_allclose(fused.channel_gates[label].std, gates.std, rtol=1e-3)
    assert "fused" in fused.missing[-1]


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["pat_sf", "full_sf", "pat_linear", "pat_window", "full_window"])
def test_weights_of_the_attention_give_the_output_of_the_layer(network, mixer):
    model = network(mixers=("pat_ch", "pat_ch", "pat_ch", mixer), window_size=2)
    layer = model.stages[3].blocks[0].mixer
    attention = getattr(layer, "attn", layer)
    image = torch.randn(1, 3, 96, 160)  # 3x5 positions, which windows of 2 do not fill
    (x,) = inputs_of(model, [attention], image)
    if attention is layer:
        x = layer.conv(x) if layer.full else x[:, layer.split[0] :]
    output = layer.attend(x) if attention is layer else attention(x)
    tokens = x[0].permute(1, 2, 0)
    qkv = attention.qkv(layer.norm(tokens) if attention is layer else tokens)
    v = qkv.view(3, 5, 3, 2, -1)[:, :, 2].permute(2, 0, 1, 3)
    found = inspect_network(model, image).attention["4.1"]
    assert found.shape == (2, 3, 5, 3, 5)
    np.testing.assert_allclose(found.sum((3, 4)), 1, rtol=1e-4)
    y = torch.einsum("nabcd,ncdk->nabk", torch.from_numpy(found), v)
    y = attention.proj(y.permute(1, 2, 0, 3).flatten(2)).permute(2, 0, 1)
    np.testing.assert_allclose(y.numpy(), output[0].numpy(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", CHANNEL_ATTENTIONS)
def test_every_channel_attention(network, image, name):
    seen = inspect_network(network(mixers=("pat_ch",) * 4, channel_attn=name), image)
    missing = "No channel gates: PAT_ch has no channel attention." in seen.missing
    assert missing == (name == "none") == (not seen.channel_gates) == (seen.shares["1.1"].channel_gates is None)
    for gates in seen.channel_gates.values():
        assert 0 <= gates.gate.min() <= gates.gate.max() <= (2 if name == "gct" else 1)


@torch.no_grad()
@pytest.mark.parametrize("name", SPATIAL_ATTENTIONS)
def test_every_spatial_attention(network, image, name):
    model = network(spatial_attn=name)
    seen = inspect_network(model, image)
    missing = "No spatial gates: no MLP has a spatial attention." in seen.missing
    assert missing == (name == "none") == (seen.shares["1.1"].spatial_gates is None)
    if name != "none":
        attn = model.stages[0].blocks[0].mlp.attn
        (x,) = inputs_of(model, [attn], image)
        x1 = x if name == "full_sp" else x[:, :8]
        gate = attn.attn(x1) / x1 if name == "cbam" else attn.gate(x1)
        np.testing.assert_allclose(seen.spatial_gates["1.1"], gate[0, 0].numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mixer", ["pconv", "conv", "dwconv", "pat_lka", "full_ch"])
def test_networks_without_some_parts(network, image, mixer):
    seen = inspect_network(network(mixers=(mixer,) * 4), image)
    assert len(seen.spatial_gates) == len(seen.shares) == 6
    assert (seen.attention, seen.positions) == ({}, None)
    assert seen.shares["1.1"].convolved == (1 if mixer in ("conv", "dwconv", "full_ch") else 0.25)
    assert bool(seen.channel_gates) == (mixer == "full_ch")
    reason = "large-kernel attention has no weights between positions" if mixer == "pat_lka" else "no mixer is PAT_sf"
    assert f"No self-attention: {reason}." in seen.missing


def test_too_many_weights_are_left_out(network, image, monkeypatch):
    monkeypatch.setattr("patnet.inspection.network.MAX_WEIGHTS", 71)
    seen = inspect_network(network(), image)  # 2 heads, 6x6 pairs of positions
    assert not seen.attention
    assert seen.missing == [
        f"The attention of block 4.{n} has 2x6x6 weights, too many to keep: give a smaller image." for n in (1, 2)
    ]


def test_networks_and_inputs_that_do_not_fit(network):
    seen = inspect_network(timm.create_model("resnet10t", num_classes=3).eval(), torch.randn(1, 3, 64, 64))
    assert (seen.logits.shape, len(seen.missing)) == ((3,), 1)
    assert "no block of patnet.nn" in seen.missing[0]
    model = network()
    for shape in ((2, 3, 64, 64), (3, 64, 64), (1, 1, 64, 64), (1, 3, 16, 16)):
        with pytest.raises(InputError, match="image"):
            inspect_network(model, torch.randn(shape))
        assert count_hooks(model) == 0
    with pytest.raises(InputError, match="no logits"):
        inspect_network(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8))
