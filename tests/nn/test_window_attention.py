import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import Full_sf, WindowAttention

sides = st.integers(1, 7)


@settings(max_examples=25)
@given(
    side=st.integers(1, 4),
    heads=st.integers(1, 2),
    head_dim=st.integers(1, 3),
    batch=st.integers(1, 2),
    height=sides,
    width=sides,
    method=st.sampled_from(["euclidean", "product", "none"]),
    mode=st.sampled_from(["bias", "contextual"]),
)
def test_each_cell_attends_to_the_cells_of_its_window(
    settled, side, heads, head_dim, batch, height, width, method, mode
):
    dim = heads * head_dim
    options = {"num_heads": heads, "position_method": method, "position_mode": mode, "dtype": torch.float64}
    attention = settled(WindowAttention(dim, side, **options))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    y = attention(x)
    assert y.shape == x.shape
    for top in range(0, height, side):
        for left in range(0, width, side):
            window = x[:, :, top : top + side, left : left + side]  # smaller at the edges
            rows, cols = window.shape[2:]
            cells = [(r, c) for r in range(rows) for c in range(cols)]
            tokens = window.flatten(2).transpose(1, 2)  # (N, cells, C)
            q, k, v = (tokens @ attention.qkv.weight.T).split(dim, dim=2)
            parts = []
            for h in range(heads):
                part = slice(h * head_dim, (h + 1) * head_dim)
                scaled = q[:, :, part] / math.sqrt(head_dim)
                logits = scaled @ k[:, :, part].transpose(1, 2)
                for i, (ri, ci) in enumerate(cells):
                    for j, (rj, cj) in enumerate(cells):
                        if method == "none":
                            continue
                        near = round(math.hypot(ri - rj, ci - cj)) + 40
                        b = near if method == "euclidean" else (ri - rj + 40) * 81 + ci - cj + 40
                        table = attention.position.table[h]
                        logits[:, i, j] += table[b] if mode == "bias" else scaled[:, i] @ table[:, b]
                parts.append(logits.softmax(2) @ v[:, :, part])
            expected = torch.cat(parts, dim=2) @ attention.proj.weight.T + attention.proj.bias
            got = y[:, :, top : top + side, left : left + side].flatten(2).transpose(1, 2)
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(3, 5), (7, 7), (1, 1)])
def test_a_window_over_the_whole_map_is_self_attention(settled, size):
    whole = settled(Full_sf(8, num_heads=2, dtype=torch.float64))
    whole.norm = torch.nn.Identity()
    windowed = WindowAttention(8, 7, num_heads=2, dtype=torch.float64).eval()
    windowed.load_state_dict({key: v for key, v in whole.state_dict().items() if not key.startswith("conv")})
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(windowed(x), whole.attend(x))


def test_dropout_acts_in_training_alone():
    attention = WindowAttention(8, 3, num_heads=2)
    torch.nn.init.normal_(attention.proj.weight)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(attention.eval()(x), attention(x))
    attention.train()
    assert not torch.equal(attention(x), attention(x))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide the 12 attended channels: .*1, 2, 3, 4, 6, 12"):
        WindowAttention(12, num_heads=5)
    with pytest.raises(ValueError, match="window_size=0 holds no cell: at least 1 is needed"):
        WindowAttention(12, 0)
    with pytest.raises(ValueError, match=r"unknown position method 'prodct' \(did you mean 'product'\?\)"):
        WindowAttention(12, position_method="prodct")
