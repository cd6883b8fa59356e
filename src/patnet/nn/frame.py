"""The frame of all mixers with an attention: a convolution of the first channels, an attention over the last."""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .partial_conv import split_channels
from .table import Layer, one_of

__all__ = ["SF_NORM_POSITIONS", "ConvAttention", "FullAttention", "PartialAttention", "channels_per_head"]

SF_NORM_POSITIONS = ("before", "after")


def channels_per_head(num_heads: int, attended: int) -> int:
    """Channels of each head; a `ValueError` if `num_heads` does not divide the `attended` channels."""
    if num_heads < 1 or attended % num_heads:
        fitting = [heads for heads in range(1, min(attended, 16) + 1) if attended % heads == 0]
        raise ValueError(
            f"num_heads={num_heads} does not divide the {attended} attended channels: "
            f"possible are {', '.join(map(str, fitting))}"
        )
    return attended // num_heads


class ConvAttention(nn.Module):
    """A 3x3 convolution of the first channels and an attention over the last ones.

    Two shares of the channels, convolved and attended to, make its forms. Partial: `partial_ratio` and the others, side
    by side. Full: both are 1, and the attention takes the output of the convolution. A subclass adds `attend(x2)` and
    `norm_all`.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved; without effect in the full form.
        full: Convolve all channels and attend to all of them.

    Attributes:
        split: Number of convolved and of attended channels.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel.
    """

    if TYPE_CHECKING:  # TorchScript refuses the annotation
        norm_all: nn.Module

    def __init__(self, dim: int, partial_ratio: float, *, full: bool = False, device=None, dtype=None) -> None:
        super().__init__()
        self.full = full
        self.split = [dim, dim] if full else list(split_channels(dim, partial_ratio))
        self.conv = nn.Conv2d(self.split[0], self.split[0], 3, padding=1, bias=False, device=device, dtype=dtype)

    def attend(self, x2: Tensor) -> Tensor:
        """The attention over `x2`, `(N, attended, H, W)` to the same, with the norm next to it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """What `forward` computes."""
        if self.full:
            return self.norm_all(self.attend(self.conv(x)))
        x1, x2 = torch.split(x, self.split, dim=1)  # (N, C_p, H, W), (N, C_u, H, W)
        y1 = self.conv(x1)
        y2 = self.attend(x2)
        return self.norm_all(torch.cat((y1, y2), dim=1))


class PartialAttention(ConvAttention):
    """The frame of `PAT_sf` around another attention: convolution of the first `C_p` channels, attention on the others.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        attention: Called as `attention(channels, device=..., dtype=..., **options)`; gives a module that maps
            `(N, channels, H, W)` to the same shape.
        partial_ratio: Share of the channels that is convolved.
        full: See `FullAttention`.
        sf_norm_position: `"before"`, a LayerNorm of the attended channels before the attention; or `"after"`, of all
            channels after the concatenation.
        **options: Options of the attention.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, or `sf_norm_position` is unknown.
    """

    def __init__(
        self,
        dim: int,
        attention: Layer,
        partial_ratio: float = 0.25,
        *,
        full: bool = False,
        sf_norm_position: str = "before",
        device=None,
        dtype=None,
        **options: Any,
    ) -> None:
        super().__init__(dim, partial_ratio, full=full, device=device, dtype=dtype)
        attended = self.split[1]
        before = one_of(sf_norm_position, SF_NORM_POSITIONS, "sf_norm_position") == "before"
        self.norm = LayerNorm2d(attended, device=device, dtype=dtype) if before else nn.Identity()
        self.attn = attention(attended, device=device, dtype=dtype, **options)
        self.norm_all = nn.Identity() if before else LayerNorm2d(dim, device=device, dtype=dtype)

    def attend(self, x2: Tensor) -> Tensor:
        """The attention over `x2` after its norm, `(N, attended, H, W)` to the same."""
        return self.attn(self.norm(x2))


class FullAttention(PartialAttention):
    """The full form of `PartialAttention`, to compare it with: every channel is convolved, and then attended to.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        attention: As in `PartialAttention`.
        **options: As in `PartialAttention`, without `partial_ratio`.
    """

    def __init__(self, dim: int, attention: Layer, **options: Any) -> None:
        super().__init__(dim, attention, 1.0, full=True, **options)
