"""Large-kernel attention, the attention of VAN."""

from torch import Tensor, nn

__all__ = ["LargeKernelAttention"]


class LargeKernelAttention(nn.Module):
    """Large-kernel attention: each value is weighted by a function of the positions around it and of all channels.

    `y = x * Conv1x1(DWConv7x7(DWConv5x5(x)))`, the second depthwise convolution with dilation 3, which together have
    the reach of a 21x21 kernel; all with biases, no softmax or sigmoid.

    Shapes: `(N, C, H, W)` to the same. From VAN, Guo et al. (arXiv 2202.09741), equations 1 and 2.

    Args:
        dim: Channels `C`.
    """

    def __init__(self, dim: int, *, device=None, dtype=None) -> None:
        super().__init__()
        self.near = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, device=device, dtype=dtype)
        self.far = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim, device=device, dtype=dtype)
        self.mix = nn.Conv2d(dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(self.far(self.near(x)))
