"""PConv: the partial convolution of FasterNet, the basis of every block here."""

import math

import torch
from torch import Tensor, nn

__all__ = ["PConv", "split_channels"]


def split_channels(dim: int, partial_ratio: float, *, allow_full: bool = False) -> tuple[int, int]:
    """Number of convolved and of untouched channels, `C_p = floor(partial_ratio * C)` and `C_u = C - C_p`.

    Raises `ValueError` if either part is left without a channel; with `allow_full`, `C_u = 0` is accepted.
    """
    if not 0 < partial_ratio <= 1:
        raise ValueError(f"partial_ratio must lie in (0, 1], got {partial_ratio}")
    convolved = math.floor(partial_ratio * dim + 1e-6)
    if convolved < 1:
        raise ValueError(
            f"partial_ratio={partial_ratio} leaves none of {dim} channels to convolve: at least {1 / dim:.4g} is needed"
        )
    if convolved == dim and not allow_full:
        raise ValueError(
            f"partial_ratio={partial_ratio} leaves none of {dim} channels to attend to: "
            f"at most {(dim - 1) / dim:.4g} is possible"
        )
    return convolved, dim - convolved


class PConv(nn.Module):
    """Partial convolution: a dense 3x3 convolution on the first `C_p` channels, the others pass through.

    Shapes: `(N, C, H, W)` to the same. From FasterNet (arXiv 2303.03667), equation 2.

    Args:
        dim: Channels `C`.
        partial_ratio: `C_p / C`, in `(0, 1]`; 1 convolves all of them.

    Raises:
        ValueError: If `partial_ratio` leaves no channel to convolve.
    """

    def __init__(self, dim: int, partial_ratio: float = 0.25, *, device=None, dtype=None) -> None:
        super().__init__()
        self.split = list(split_channels(dim, partial_ratio, allow_full=True))
        self.conv = nn.Conv2d(self.split[0], self.split[0], 3, padding=1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)  # (N, C_p, H, W), (N, C_u, H, W)
        return torch.cat((self.conv(x1), x2), dim=1)
