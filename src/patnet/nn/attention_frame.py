"""The frame of PAT_sf for any attention: a convolution, a LayerNorm and the attention, in partial and in full form."""

from collections.abc import Callable

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .partial_conv import split_channels
from .table import one_of

__all__ = ["SF_NORM_POSITIONS", "FullAttention", "PartialAttention", "channels_of_head"]

SF_NORM_POSITIONS = ("before", "after")


def channels_of_head(num_heads: int, attended: int, dim: int | None = None) -> int:
    """Channels of each head; a `ValueError` if `num_heads` does not divide the `attended` channels, of `dim` in all."""
    if num_heads < 1 or attended % num_heads:
        fitting = [heads for heads in range(1, min(attended, 16) + 1) if attended % heads == 0]
        which = f"{attended} attended channels" if dim is None else f"{attended} attended of {dim} channels"
        raise ValueError(
            f"num_heads={num_heads} does not divide the {which}: possible are {', '.join(map(str, fitting))}"
        )
    return attended // num_heads


class PartialAttention(nn.Module):
    """PAT_sf's frame around another attention: 3x3 convolution of the first `C_p` channels, attention on the others.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        attention: Called as `attention(channels, device=..., dtype=...)`; gives a module that maps
            `(N, channels, H, W)` to the same shape.
        partial_ratio: Share of the channels that is convolved.
        norm_position: `"before"`, a LayerNorm of the attended channels before the attention; or `"after"`, of all
            channels after the concatenation.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, or `norm_position` is unknown.
    """

    def __init__(
        self,
        dim: int,
        attention: Callable[..., nn.Module],
        partial_ratio: float = 0.25,
        *,
        norm_position: str = "before",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.split = list(split_channels(dim, partial_ratio))
        convolved, untouched = self.split
        before = one_of(norm_position, SF_NORM_POSITIONS, "norm_position") == "before"
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.norm = LayerNorm2d(untouched, device=device, dtype=dtype) if before else nn.Identity()
        self.attn = attention(untouched, device=device, dtype=dtype)
        self.norm_all = nn.Identity() if before else LayerNorm2d(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.attn(self.norm(x2))
        return self.norm_all(torch.cat((y1, y2), dim=1))


class FullAttention(nn.Module):
    """3x3 convolution of all channels, then the attention on all of them.

    The counterpart of `PartialAttention` to compare it with: every channel gets what there either part gets, the
    convolution or the norm and the attention.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        attention: As in `PartialAttention`.
        norm_position: `"before"`, the LayerNorm stands between convolution and attention; or `"after"` both.

    Raises:
        ValueError: If `norm_position` is unknown.
    """

    def __init__(
        self,
        dim: int,
        attention: Callable[..., nn.Module],
        *,
        norm_position: str = "before",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        before = one_of(norm_position, SF_NORM_POSITIONS, "norm_position") == "before"
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.norm = LayerNorm2d(dim, device=device, dtype=dtype) if before else nn.Identity()
        self.attn = attention(dim, device=device, dtype=dtype)
        self.norm_all = nn.Identity() if before else LayerNorm2d(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_all(self.attn(self.norm(self.conv(x))))
