"""The frame of all mixers with an attention: a convolution of some channels, an attention over the others, a norm."""

import pytest
import torch
import torch.nn.functional as F
from equations import batch_norm, layer_norm, self_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import CHANNEL_ATTENTIONS, MIXERS, PAT_sf

DD = {"dtype": torch.float64}
FRAMED = [name for name in MIXERS if name.startswith(("pat_", "full_"))]


@pytest.mark.parametrize("name", FRAMED)
@settings(max_examples=12)
@given(
    convolved=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    over_all=st.booleans(),
    channel_attn=st.sampled_from(list(CHANNEL_ATTENTIONS)),
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_mixers_equal_the_equations(
    settled, name, convolved, heads, head_dim, height, width, over_all, channel_attn, method, mode
):
    form, _, kind = name.partition("_")
    full, channelwise = form == "full", kind == "ch"
    dim = heads * head_dim + (0 if full else convolved)
    options = {"num_heads": heads, "position_method": method, "position_mode": mode, "channel_attn": channel_attn}
    options |= {"ch_norm_position": "all" if over_all else "untouched"}
    options |= {"sf_norm_position": "after" if over_all else "before"}
    mixer = settled(MIXERS[name].build(dim, partial_ratio=convolved / dim, **options, **DD))
    x = torch.randn(2, dim, height, width, **DD)

    y1 = F.conv2d(x if full else x[:, :convolved], mixer.conv.weight, padding=1)
    x2 = y1 if full else x[:, convolved:]
    if not channelwise and not over_all:
        x2 = layer_norm(x2, mixer.norm)
    y2 = self_attention(x2, mixer) if kind == "sf" else mixer.attn(x2)
    if channelwise and (full or not over_all):
        y2 = batch_norm(y2, mixer.norm)
    y = y2 if full else torch.cat((y1, y2), dim=1)
    if over_all and not (full and channelwise):
        y = (batch_norm if channelwise else layer_norm)(y, mixer.norm_all)
    torch.testing.assert_close(mixer(x), y)


@pytest.mark.parametrize("name", [name for name in FRAMED if name.startswith("pat_")])
def test_a_ratio_of_one_convolves_everything(name):
    mixer = MIXERS[name].build(8, partial_ratio=1, **DD)
    x = torch.randn(2, 8, 5, 4, **DD)
    torch.testing.assert_close(mixer(x), F.conv2d(x, mixer.conv.weight, padding=1))


@pytest.mark.parametrize("name", [name for name, mixer in MIXERS.items() if "proj_drop" in mixer.options])
def test_dropout_acts_in_training_alone(name):
    mixer = MIXERS[name].build(8, num_heads=2)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(mixer.eval()(x), mixer(x))
    mixer.train()
    assert not torch.equal(mixer(x), mixer(x))
    still = MIXERS[name].build(8, num_heads=2, attn_drop=0, proj_drop=0).train()
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize("mode", ["bias", "contextual"])
@pytest.mark.parametrize("method", ["euclidean", "product"])
def test_new_self_attention_weighs_by_content_alone(settled, method, mode):
    with_position = PAT_sf(16, num_heads=3, position_method=method, position_mode=mode).eval()
    without = PAT_sf(16, num_heads=3, position_method="none").eval()
    without.load_state_dict(with_position.state_dict(), strict=False)
    x = torch.randn(2, 16, 5, 4)
    torch.testing.assert_close(with_position(x), without(x))
    weights = settled(with_position).attention(x[:, 4:])
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(with_position.fuse().attention(x[:, 4:]), weights)


@pytest.mark.parametrize(("mode", "backend"), [("bias", "aot_eager"), ("contextual", "eager")])
def test_compiled_self_attention_follows_the_size_and_its_gradient(settled, mode, backend):
    torch._dynamo.reset()
    block = settled(PAT_sf(8, num_heads=2, position_mode=mode))
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for size in [(2, 3), (3, 2)]:
        x = torch.randn(2, 8, *size)
        results = [(y, torch.autograd.grad(y.square().sum(), block.position.table)) for y in (block(x), compiled(x))]
        torch.testing.assert_close(*results)
