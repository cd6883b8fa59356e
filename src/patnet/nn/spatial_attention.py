"""Spatial attentions for the MLP, by name in `SPATIAL_ATTENTIONS`: PAT_sp and what it is compared with.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.cbam import SpatialAttn
from torch import Tensor, nn

from . import native
from .folding import FusedConv2d, affine_of, as_affine, exact, fold, hardsigmoid_of, make_conv, with_parts
from .norm import BatchNorm2d
from .partial_conv import split_channels
from .table import Layer, no_attention

__all__ = ["SPATIAL_ATTENTIONS", "Full_sp", "FusedPAT_sp", "PAT_cbam", "PAT_sp"]


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
        self, dim: int, partial_ratio: float = 0.5, *, norm_layer: Layer = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.split = list(split_channels(dim, partial_ratio))
        gated, mixed = self.split
        self.gate_conv = nn.Conv2d(gated, 1, 1, bias=False, **dd)
        self.gate_norm = norm_layer(gated, **dd)
        self.norm = norm_layer(mixed, **dd)
        self.conv = nn.Conv2d(mixed, mixed, 1, bias=False, **dd)

    def gate(self, x1: Tensor) -> Tensor:
        """The map that gates the first half `x1`, `(N, 1, H, W)` in [0, 1]."""
        return F.hardsigmoid(self.gate_conv(x1))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            parts = (self.gate_conv, self.gate_norm, self.norm, self.conv)
            if native.takes(x, *parts) and x.shape[1] == sum(self.split):
                return native.spatial_attention(x, *parts)
        x1, x2 = torch.split(x, self.split, dim=1)  # (N, C / 2, H, W) each
        y1 = self.gate_norm(self.gate(x1) * x1)
        y2 = self.conv(self.norm(x2))
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode: a 1x1 convolution for the mixed half, and the gate over the full width.

        The convolution passes the gated half through, so that the MLP's convolution before it can take it in. The map
        stays a convolution of its own: as one more output row it would leave a number of rows that no kernel is made
        for, which costs more than reading that half once.
        """
        gate_affine, affine = affine_of(self.gate_norm), affine_of(self.norm)
        if gate_affine is None or affine is None:
            return self
        mixed: Any = fold(self.conv, before=affine)
        gate_scale, gate_shift = gate_affine
        gated = len(gate_scale)
        weight = torch.block_diag(torch.eye(gated).to(gate_scale), exact(mixed.weight).flatten(1))
        conv = make_conv(self.conv, weight[..., None, None], F.pad(exact(mixed.bias), (gated, 0)))
        return nn.Sequential(conv, FusedPAT_sp(self.gate_conv, gate_scale, gate_shift, width=len(weight))).eval()


class Full_sp(nn.Module):
    """Full spatial attention: one map, made of all channels, gates all of them.

    `y = BatchNorm(s * x)` with `s = hardsigmoid(Conv1x1(x))`, `C -> 1`, no bias. The counterpart of `PAT_sp` to compare
    it with, without that one's second 1x1 convolution: the convolution before it in the MLP mixes all channels.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
    """

    def __init__(self, dim: int, *, norm_layer: Layer = BatchNorm2d, device=None, dtype=None) -> None:
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
        return self if affine is None else FusedPAT_sp(self.gate_conv, *affine, width=len(affine[0])).eval()


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
        self, dim: int, partial_ratio: float = 0.5, *, norm_layer: Layer = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.split = list(split_channels(dim, partial_ratio))
        gated, mixed = self.split
        self.attn = SpatialAttn(**dd)
        self.attn.conv.bn = norm_layer(1, **dd)  # timm's own does not train on a single value
        self.gate_norm = norm_layer(gated, **dd)
        self.norm = norm_layer(mixed, **dd)
        self.conv = nn.Conv2d(mixed, mixed, 1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)  # (N, C / 2, H, W) each
        y1 = self.gate_norm(self.attn(x1))
        y2 = self.conv(self.norm(x2))
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the map's and the mixed half's norms folded."""
        map_affine, affine = affine_of(self.attn.conv.bn), affine_of(self.norm)
        if map_affine is None or affine is None:
            return self
        inner = with_parts(self.attn.conv, conv=fold(self.attn.conv.conv, after=map_affine), bn=nn.Identity())
        return with_parts(
            self,
            attn=with_parts(self.attn, conv=inner),
            gate_norm=as_affine(self.gate_norm, self.conv.weight),
            norm=nn.Identity(),
            conv=fold(self.conv, before=affine),
        )


@native.replaceable
class FusedPAT_sp(nn.Module):
    """The gate of `PAT_sp` or `Full_sp` for inference, with its norm, over the full width.

    `y = x * (s * scale + keep) + shift`, with `scale` zero on the mixed half and `keep` zero on the gated one: no half
    is split off and put back, which runtimes do by copying. The scale and shift of the hard-sigmoid are in the
    convolution, and a clamp is left of it.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        gate_conv: The 1x1 convolution of the gated channels that makes the map.
        scale: Scale of each gated channel, `(gated,)`.
        shift: Shift of each gated channel, `(gated,)`.
        width: Channels `C`; those after the gated ones pass through.
    """

    def __init__(self, gate_conv: nn.Conv2d, scale: Tensor, shift: Tensor, width: int) -> None:
        super().__init__()
        rest, like = width - len(scale), gate_conv.weight
        keep = torch.cat((torch.zeros_like(scale), scale.new_ones(rest)))
        one = torch.ones(1).to(scale)
        wide = make_conv(gate_conv, F.pad(exact(like), (0, 0, 0, 0, 0, rest)))
        self.gate_conv: FusedConv2d = fold(wide, after=hardsigmoid_of(one, 0 * one))
        self.scale, self.keep, self.shift = (
            nn.Parameter(value.to(like).view(1, -1, 1, 1), requires_grad=False)
            for value in (F.pad(scale, (0, rest)), keep, F.pad(shift, (0, rest)))
        )

    def gate(self, x: Tensor) -> Tensor:
        """The map that gates the first channels, `(N, 1, H, W)` in [0, 1]."""
        return self.gate_conv(x).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, torch.addcmul(self.keep, self.gate(x), self.scale))


SPATIAL_ATTENTIONS: dict[str, Layer] = {
    "pat_sp": PAT_sp,
    "full_sp": Full_sp,
    "cbam": PAT_cbam,
    "none": no_attention,
}
