"""SRM: style-based recalibration of the channels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .fused import as_affine, with_parts
from .norm import BatchNorm2d
from .statistics import spatial_mean_std

__all__ = ["SRM"]


class SRM(nn.Module):
    """Style-based recalibration: gates from the mean and deviation of each channel, each channel by itself.

    `g = sigmoid(BatchNorm(w_1 * mu + w_2 * sigma))` with two weights for each channel, which start at zero as the
    authors' do. What sets the paper's Gaussian attention apart is that its mix is dense.

    Shapes: `(N, C, H, W)` to the same. From Lee et al., ICCV 2019 (arXiv 1903.10829), equations 1 to 5.
    """

    def __init__(
        self, dim: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(dim, 2, device=device, dtype=dtype))
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        mean, std = spatial_mean_std(x)  # (N, C) each
        mixed = (torch.stack((mean, std), dim=-1).to(x.dtype) * self.mix).sum(-1)
        return torch.sigmoid(self.norm(mixed[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm a scale and a shift."""
        return with_parts(self, norm=as_affine(self.norm, self.mix))
