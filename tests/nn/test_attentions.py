"""The frame around other attentions, and those attentions: linear, large-kernel, window."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import FullAttention, LargeKernelAttention, LinearAttention, PartialAttention, WindowAttention

sides = st.integers(1, 6)
DD = {"dtype": torch.float64}


@settings(max_examples=30)
@given(
    convolved=st.integers(1, 4),
    attended=st.integers(1, 6),
    height=sides,
    width=sides,
    full=st.booleans(),
    attention=st.sampled_from([LargeKernelAttention, LinearAttention, WindowAttention]),
    position=st.sampled_from(["before", "after"]),
)
def test_the_frame_equals_the_equations(
    settled, equations, convolved, attended, height, width, full, attention, position
):
    dim = attended if full else convolved + attended
    options = {"sf_norm_position": position, **DD} | ({} if attention is LargeKernelAttention else {"num_heads": 1})
    partial_ratio = {} if full else {"partial_ratio": convolved / dim}
    block = settled((FullAttention if full else PartialAttention)(dim, attention, **partial_ratio, **options))
    x = torch.randn(2, dim, height, width, **DD)
    x1 = x if full else x[:, :convolved]
    y1 = F.conv2d(x1, block.conv.weight, padding=1)
    x2 = y1 if full else x[:, convolved:]
    y2 = block.attn(equations.layer_norm(x2, block.norm) if position == "before" else x2)
    y = y2 if full else torch.cat((y1, y2), dim=1)
    torch.testing.assert_close(block(x), y if position == "before" else equations.layer_norm(y, block.norm_all))


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


def test_large_kernel_attention_reaches_as_far_as_both_kernels(settled):
    lka = settled(LargeKernelAttention(1, **DD))
    x = torch.randn(1, 1, 31, 31, **DD, requires_grad=True)
    lka(x)[0, 0, 15, 15].backward()
    read = x.grad[0, 0].nonzero()
    assert (read.min(), read.max()) == (15 - 11, 15 + 11)


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
    batch=st.integers(1, 2),
    height=sides,
    width=sides,
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_window_attention_is_self_attention_of_each_window(
    settled, equations, side, heads, head_dim, batch, height, width, method, mode
):
    options = {"num_heads": heads, "position_method": method, "position_mode": mode}
    attention = settled(WindowAttention(heads * head_dim, side, **options, **DD))
    x = torch.randn(batch, heads * head_dim, height, width, **DD)
    y = attention(x)
    assert y.shape == x.shape
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, cols = slice(top, top + side), slice(left, left + side)  # smaller at the edges
            expected = equations.self_attention(x[:, :, rows, cols], attention)
            torch.testing.assert_close(y[:, :, rows, cols], expected)


def test_dropout_acts_in_training_alone():
    attention = WindowAttention(8, 3, num_heads=2)
    torch.nn.init.normal_(attention.proj.weight)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(attention.eval()(x), attention(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PartialAttention(8, LargeKernelAttention, 1.0), "to attend to"),
        (lambda: FullAttention(8, LargeKernelAttention, sf_norm_position="afte"), r"sf_norm_position 'afte' \(did you"),
        (lambda: PartialAttention(8, LinearAttention, num_heads=4), "does not divide the 6 attended .*1, 2, 3, 6"),
        (lambda: LinearAttention(12, num_heads=5), "num_heads=5 does not divide the 12 .* are 1, 2, 3, 4, 6, 12"),
        (lambda: WindowAttention(12, 0), "window_size=0 has no position: at least 1 is needed"),
        (lambda: WindowAttention(12, position_method="prodct"), r"position method 'prodct' \(did you mean 'product'"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
