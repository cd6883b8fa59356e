from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import FullAttention, LargeKernelAttention, LinearAttention, PartialAttention, WindowAttention

sides = st.integers(1, 5)
ATTENTIONS = [LargeKernelAttention, partial(LinearAttention, num_heads=1), partial(WindowAttention, num_heads=1)]


def layer_norm(x, norm):
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@settings(max_examples=20)
@given(
    convolved=st.integers(1, 4),
    untouched=st.integers(1, 6),
    height=sides,
    width=sides,
    attention=st.sampled_from(ATTENTIONS),
    position=st.sampled_from(["before", "after"]),
)
def test_partial_equals_the_equations(settled, convolved, untouched, height, width, attention, position):
    dim = convolved + untouched
    options = {"norm_position": position, "dtype": torch.float64}
    block = settled(PartialAttention(dim, attention, convolved / dim, **options))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    x1, x2 = x[:, :convolved], x[:, convolved:]
    y2 = block.attn(layer_norm(x2, block.norm) if position == "before" else x2)
    y = torch.cat((F.conv2d(x1, block.conv.weight, padding=1), y2), dim=1)
    torch.testing.assert_close(block(x), y if position == "before" else layer_norm(y, block.norm_all))


@settings(max_examples=20)
@given(
    dim=st.integers(1, 8),
    height=sides,
    width=sides,
    attention=st.sampled_from(ATTENTIONS),
    position=st.sampled_from(["before", "after"]),
)
def test_full_equals_the_equations(settled, dim, height, width, attention, position):
    block = settled(FullAttention(dim, attention, norm_position=position, dtype=torch.float64))
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    convolved = F.conv2d(x, block.conv.weight, padding=1)
    y = block.attn(layer_norm(convolved, block.norm) if position == "before" else convolved)
    torch.testing.assert_close(block(x), y if position == "before" else layer_norm(y, block.norm_all))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="to attend to"):
        PartialAttention(8, LargeKernelAttention, 1.0)
    with pytest.raises(ValueError, match=r"unknown norm_position 'afte' \(did you mean 'after'\?\)"):
        FullAttention(8, LargeKernelAttention, norm_position="afte")
    with pytest.raises(ValueError, match=r"num_heads=4 does not divide the 6 attended channels: .*1, 2, 3, 6"):
        PartialAttention(8, partial(LinearAttention, num_heads=4))
