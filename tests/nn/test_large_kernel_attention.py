import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from patnet.nn import LargeKernelAttention

sides = st.integers(1, 6)


@settings(max_examples=15)
@given(batch=st.integers(1, 3), dim=st.integers(1, 5), height=sides, width=sides)
def test_equals_the_equations(settled, batch, dim, height, width):
    lka = settled(LargeKernelAttention(dim, dtype=torch.float64))
    x = torch.randn(batch, dim, height, width, dtype=torch.float64)
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


def test_reaches_as_far_as_both_kernels_do(settled):
    lka = settled(LargeKernelAttention(1, dtype=torch.float64))
    x = torch.randn(1, 1, 31, 31, dtype=torch.float64, requires_grad=True)
    lka(x)[0, 0, 15, 15].backward()
    read = x.grad[0, 0].nonzero()
    assert (read.min(), read.max()) == (15 - 11, 15 + 11)
