"""PAT_ch: partial channel attention, the mixer of the paper's stages 1 to 3."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .channel_attention import CHANNEL_ATTENTIONS
from .fused import Affine, Scales, affine_of, fused_or_same, with_parts
from .norm import BatchNorm2d
from .partial_conv import split_channels
from .table import look_up

__all__ = ["PAT_ch"]


class PAT_ch(nn.Module):
    """Partial channel attention: 3x3 convolution of the first `C_p` channels, channel attention on the others.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), figure of the PAT block. The BatchNorm
    stands on the attended channels alone, as in the authors' code; the paper draws it after the concatenation.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        channel_attn: Name in `CHANNEL_ATTENTIONS`.
        norm_layer: Norm of the attended channels and of the gate.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, or `channel_attn` is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        channel_attn: str = "gaussian",
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.split = list(split_channels(dim, partial_ratio))
        convolved, untouched = self.split
        make_attn = look_up(CHANNEL_ATTENTIONS, channel_attn, "channel_attn")
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.attn = make_attn(untouched, norm_layer=norm_layer, device=device, dtype=dtype)
        self.norm = norm_layer(untouched, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.norm(self.attn(x2))
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the gate's norm folded, and the last norm a scale and a shift."""
        affine = affine_of(self.norm)
        norm = self.norm if affine is None else Affine(*(part.to(self.conv.weight) for part in affine))
        return with_parts(self, attn=fused_or_same(self.attn), norm=norm)

    def split_norm(self) -> tuple[nn.Module, Scales | None]:
        """This mixer fused and without its last norm, and that norm as scale and shift of all channels."""
        affine = affine_of(self.norm)
        if affine is None:
            return self.fuse(), None
        scale, shift = affine
        ones = scale.new_ones(self.split[0])
        whole = torch.cat((ones, scale)), torch.cat((torch.zeros_like(ones), shift))
        return with_parts(self, attn=fused_or_same(self.attn), norm=nn.Identity()), whole
