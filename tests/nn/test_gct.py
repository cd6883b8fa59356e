import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import GCT

sides = st.integers(1, 6)


@settings(max_examples=15)
@given(batch=st.integers(1, 3), dim=st.integers(1, 9), height=sides, width=sides)
def test_equals_the_equations(settled, batch, dim, height, width):
    gct = settled(GCT(dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
    s = gct.alpha * (x.pow(2).sum((2, 3)) + 1e-5).pow(0.5)
    normed = dim**0.5 * s / (s.pow(2).sum(1, keepdim=True) + dim * 1e-5).pow(0.5)
    expected = x * (1 + torch.tanh(gct.gamma * normed + gct.beta))[:, :, None, None]
    torch.testing.assert_close(gct(x), expected)


def test_starts_as_the_identity():
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(GCT(5)(x), x)


def test_squares_of_half_precision_do_not_overflow(settled):
    gct = settled(GCT(4))
    x = 1e4 * torch.randn(2, 4, 16, 16).clamp(-3, 3)  # gates reach 2
    y = gct.half()(x.half())
    gct.float()
    assert y.isfinite().all()
    assert (y.float() - gct(x)).norm() / gct(x).norm() < 0.01
