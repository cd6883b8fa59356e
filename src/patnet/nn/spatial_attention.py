"""Spatial attentions for the MLP, by name in `SPATIAL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers.cbam import SpatialAttn
from torch import Tensor, nn

from .fused import FusedPAT_sp, affine_of, as_affine, exact, fold, make_conv, with_parts
from .norm import BatchNorm2d
from .partial_conv import split_channels
from .pat_sp import PAT_sp
from .table import no_attention

__all__ = ["SPATIAL_ATTENTIONS", "Full_sp", "PAT_cbam"]


class Full_sp(nn.Module):
    """Full spatial attention: one map, made of all channels, gates all of them.

    `y = BatchNorm(s * x)` with `s = hardsigmoid(Conv1x1(x))`, `C -> 1`, no bias. The counterpart of `PAT_sp` to compare
    it with, without that one's second 1x1 convolution: the convolution before it in the MLP mixes all channels.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
    """

    def __init__(
        self, dim: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.gate_conv = nn.Conv2d(dim, 1, 1, bias=False, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The map that gates `x`, `(N, 1, H, W)` in [0, 1]."""
        return F.hardsigmoid(self.gate_conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gate(x) * x)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm a scale and a shift, in one step with the gate."""
        affine = affine_of(self.norm)
        if affine is None:
            return self
        scale, shift = (part.to(self.gate_conv.weight) for part in affine)
        gate_conv = make_conv(self.gate_conv, exact(self.gate_conv.weight))
        return FusedPAT_sp(gate_conv, scale=scale, keep=torch.zeros_like(scale), shift=shift).eval()


class PAT_cbam(nn.Module):
    """`PAT_sp` with the map of CBAM: mean and maximum over the channels, a 7x7 convolution, BatchNorm and sigmoid.

    The map is timm's `SpatialAttn`; halves, norms and the second half's 1x1 convolution are those of `PAT_sp`.

    Shapes: `(N, C, H, W)` to the same. From CBAM, Woo et al., ECCV 2018 (arXiv 1807.06521), equation 3.

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
        self.attn = SpatialAttn(device=device, dtype=dtype)
        self.attn.conv.bn = norm_layer(1, device=device, dtype=dtype)  # timm's own does not train on a single value
        self.gate_norm = norm_layer(gated, device=device, dtype=dtype)
        self.norm = norm_layer(mixed, device=device, dtype=dtype)
        self.conv = nn.Conv2d(mixed, mixed, 1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.gate_norm(self.attn(x1))
        y2 = self.conv(self.norm(x2))
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the map's and the mixed half's norms folded."""
        map_affine, affine = affine_of(self.attn.conv.bn), affine_of(self.norm)
        if map_affine is None or affine is None:
            return self
        attn = copy.deepcopy(self.attn)
        attn.conv.conv, attn.conv.bn = fold(attn.conv.conv, after=map_affine), nn.Identity()
        return with_parts(
            self,
            attn=attn,
            gate_norm=as_affine(self.gate_norm, self.conv.weight),
            norm=nn.Identity(),
            conv=fold(self.conv, before=affine),
        )


SPATIAL_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "pat_sp": PAT_sp,
    "full_sp": Full_sp,
    "cbam": PAT_cbam,
    "none": no_attention,
}
