"""The attentions that fit into the frame of `PAT_sf`: linear, large-kernel, window."""

import pytest
import torch
import torch.nn.functional as F
from equations import self_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import LargeKernelAttention, LinearAttention, WindowAttention

sides = st.integers(1, 6)
DD = {"dtype": torch.float64}


@settings(max_examples=15)
@given(batch=st.integers(1, 3), dim=st.integers(1, 5), height=sides, width=sides)
def test_large_kernel_attention_equals_the_equations(settled, batch, dim, height, width):
    lka = settled(LargeKernelAttention(dim, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    maps = []
    for c in range(dim):  # depthwise: each channel by itself
        near = F.conv2d(F.pad(x[:, [c]], (2, 2, 2, 2)), lka.near.weight[[c]], lka.near.bias[[c]])
        far = torch.zeros_like(near)
        padded = F.pad(near, (9, 9, 9, 9))
        for i in range(7):
            for j in range(7):
                rows, cols = slice(3 * i, 3 * i + height), slice(3 * j, 3 * j + width)
                far = far + lka.far.weight[c, 0, i, j] * padded[:, :, rows, cols]
        maps.append(far + lka.far.bias[c])
    attention = torch.einsum("oi,nihw->nohw", lka.mix.weight[:, :, 0, 0], torch.cat(maps, dim=1))
    torch.testing.assert_close(lka(x), x * (attention + lka.mix.bias[:, None, None]))


@settings(max_examples=20)
@given(heads=st.integers(1, 3), head_dim=st.integers(1, 4), batch=st.integers(1, 2), height=sides, width=sides)
def test_linear_attention_equals_the_sums_over_all_pairs(settled, heads, head_dim, batch, height, width):
    dim = heads * head_dim
    attention = settled(LinearAttention(dim, num_heads=heads, **DD))
    x = torch.randn(batch, dim, height, width, **DD)
    q, k, v = (x.flatten(2).transpose(1, 2) @ attention.qkv.weight.T).split(dim, dim=2)
    parts = []
    for part in torch.arange(dim).split(head_dim):
        weights = (F.elu(q[..., part]) + 1) @ (F.elu(k[..., part]) + 1).transpose(1, 2)
        parts.append(weights @ v[..., part] / weights.sum(2, keepdim=True))
    expected = torch.cat(parts, dim=2) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_linear_attention_gives_means_of_values_for_keys_of_any_size(settled, level):
    attention = settled(LinearAttention(8, num_heads=2, proj_drop=0))
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
    x = level * torch.randn(2, 8, 6, 6)
    values = F.conv2d(x, attention.qkv.weight[16:, :, None, None])
    y = attention(x)
    tolerance = 1e-3 * level
    assert (y <= values.amax((2, 3), keepdim=True).clamp_min(0) + tolerance).all()
    assert (y >= values.amin((2, 3), keepdim=True).clamp_max(0) - tolerance).all()


@settings(max_examples=25)
@given(
    side=st.integers(1, 7),
    heads=st.integers(1, 2),
    head_dim=st.integers(1, 3),
    height=sides,
    width=sides,
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_window_attention_is_self_attention_of_each_window(settled, side, heads, head_dim, height, width, method, mode):
    options = {"num_heads": heads, "position_method": method, "position_mode": mode}
    attention = settled(WindowAttention(heads * head_dim, side, **options, **DD))
    x = torch.randn(2, heads * head_dim, height, width, **DD)
    y = attention(x)
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, cols = slice(top, top + side), slice(left, left + side)  # smaller at the edges
            torch.testing.assert_close(y[:, :, rows, cols], self_attention(x[:, :, rows, cols], attention))
