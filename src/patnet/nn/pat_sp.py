"""PAT_sp: partial spatial attention, inside the MLP, and its like by name in `SPATIAL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import BatchNorm2d
from .partial_conv import split_channels
from .table import no_attention

__all__ = ["SPATIAL_ATTENTIONS", "PAT_sp"]


class PAT_sp(nn.Module):
    """Partial spatial attention: one map gates the first half of the channels, a 1x1 convolution mixes the other.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), section on PAT_sp.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is gated.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.5,
        *,
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.split = list(split_channels(dim, partial_ratio))
        gated, mixed = self.split
        self.gate_conv = nn.Conv2d(gated, 1, 1, bias=False, device=device, dtype=dtype)
        self.gate_norm = norm_layer(gated, device=device, dtype=dtype)
        self.norm = norm_layer(mixed, device=device, dtype=dtype)
        self.conv = nn.Conv2d(mixed, mixed, 1, bias=False, device=device, dtype=dtype)

    def gate(self, x1: Tensor) -> Tensor:
        """The map that gates the first half `x1`, `(N, 1, H, W)` in [0, 1]."""
        return F.hardsigmoid(self.gate_conv(x1))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.gate_norm(self.gate(x1) * x1)
        y2 = self.conv(self.norm(x2))
        return torch.cat((y1, y2), dim=1)


SPATIAL_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "pat_sp": PAT_sp,
    "none": no_attention,
}
