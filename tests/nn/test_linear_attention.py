import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import LinearAttention

sides = st.integers(1, 5)


@settings(max_examples=20)
@given(heads=st.integers(1, 3), head_dim=st.integers(1, 4), batch=st.integers(1, 2), height=sides, width=sides)
def test_equals_the_sums_over_all_pairs(settled, heads, head_dim, batch, height, width):
    dim = heads * head_dim
    attention = settled(LinearAttention(dim, num_heads=heads, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    y = attention(x)
    assert y.shape == x.shape
    for n in range(batch):
        tokens = x[n].flatten(1).T  # (H * W, C)
        q, k, v = (tokens @ attention.qkv.weight.T).split(dim, dim=1)
        parts = []
        for h in range(heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            weights = (F.elu(q[:, part]) + 1) @ (F.elu(k[:, part]) + 1).T
            parts.append(weights @ v[:, part] / weights.sum(1, keepdim=True))
        expected = torch.cat(parts, dim=1) @ attention.proj.weight.T + attention.proj.bias
        torch.testing.assert_close(y[n].flatten(1).T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3])
def test_keys_of_any_size_give_means_of_values(settled, level):
    attention = settled(LinearAttention(8, num_heads=2, proj_drop=0))
    with torch.no_grad():
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
    x = level * torch.randn(2, 8, 6, 6)
    values = F.conv2d(x, attention.qkv.weight[16:, :, None, None])
    y = attention(x)
    slack = 1e-3 * level
    assert (y <= values.amax((2, 3), keepdim=True).clamp_min(0) + slack).all()
    assert (y >= values.amin((2, 3), keepdim=True).clamp_max(0) - slack).all()


def test_refuses_heads_that_do_not_divide_and_says_which_do():
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide the 12 attended channels: .*1, 2, 3, 4, 6, 12"):
        LinearAttention(12, num_heads=5)
