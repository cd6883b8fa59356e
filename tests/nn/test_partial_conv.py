import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import PConv


@settings(max_examples=40)
@given(
    dim=st.integers(1, 24),
    ratio=st.floats(0.05, 1),
    batch=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
)
def test_convolves_the_first_channels_and_passes_the_others_through(dim, ratio, batch, height, width):
    convolved = int(ratio * dim + 1e-6)
    if convolved == 0:
        with pytest.raises(ValueError, match="leaves none"):
            PConv(dim, ratio)
        return
    pconv = PConv(dim, ratio, dtype=torch.float64)
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    before = x.clone()
    y = pconv(x)
    assert torch.equal(x, before)
    assert torch.equal(y[:, convolved:], x[:, convolved:])
    padded = F.pad(x[:, :convolved], (1, 1, 1, 1))
    naive = sum(
        torch.einsum("oi,nihw->nohw", pconv.conv.weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(3)
        for j in range(3)
    )
    torch.testing.assert_close(y[:, :convolved], naive)


@given(dim=st.integers(1, 2048), convolved=st.integers(1, 2048))
def test_a_ratio_of_channel_counts_gives_those_counts(dim, convolved):
    convolved = min(convolved, dim)
    assert PConv(dim, convolved / dim, device="meta").conv.out_channels == convolved
