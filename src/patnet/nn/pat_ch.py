"""PAT_ch: partial channel attention, the mixer of the paper's stages 1 to 3, and its full counterpart."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .channel_attention import CHANNEL_ATTENTIONS
from .fused import Scales, affine_of, as_affine, fused_or_same, with_parts
from .norm import BatchNorm2d
from .partial_conv import split_channels
from .table import look_up, one_of

__all__ = ["CH_NORM_POSITIONS", "Full_ch", "PAT_ch"]

CH_NORM_POSITIONS = ("untouched", "all")


class PAT_ch(nn.Module):
    """Partial channel attention: 3x3 convolution of the first `C_p` channels, channel attention on the others.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), figure of the PAT block.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        channel_attn: Name in `CHANNEL_ATTENTIONS`.
        norm_position: `"untouched"`, a norm of the attended channels alone, as in the authors' code; or `"all"`, of
            all channels after the concatenation, as the paper draws it.
        norm_layer: That norm, and the gate's.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        channel_attn: str = "gaussian",
        norm_position: str = "untouched",
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
        over_all = one_of(norm_position, CH_NORM_POSITIONS, "norm_position") == "all"
        self.norm = nn.Identity() if over_all else norm_layer(untouched, device=device, dtype=dtype)
        self.norm_all = norm_layer(dim, device=device, dtype=dtype) if over_all else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.norm(self.attn(x2))
        return self.norm_all(torch.cat((y1, y2), dim=1))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the gate's norm folded, and the last norm a scale and a shift."""
        norm, norm_all = (as_affine(norm, self.conv.weight) for norm in (self.norm, self.norm_all))
        return with_parts(self, attn=fused_or_same(self.attn), norm=norm, norm_all=norm_all)

    def split_norm(self) -> tuple[nn.Module, Scales | None]:
        """This mixer fused and without its last norm, and that norm as scale and shift of all channels."""
        whole, affine = affine_of(self.norm_all), affine_of(self.norm)
        if affine is not None:
            scale, shift = affine
            ones = scale.new_ones(self.split[0])
            whole = torch.cat((ones, scale)), torch.cat((torch.zeros_like(ones), shift))
        if whole is None:
            return self.fuse(), None
        return with_parts(self, attn=fused_or_same(self.attn), norm=nn.Identity(), norm_all=nn.Identity()), whole


class Full_ch(nn.Module):
    """Full channel attention: 3x3 convolution of all channels, then channel attention on all of them.

    The counterpart of `PAT_ch` to compare it with: every channel gets what there either part gets, the convolution
    or the attention and its norm.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        channel_attn: Name in `CHANNEL_ATTENTIONS`.
        norm_layer: Norm of the attended channels and of the gate.

    Raises:
        ValueError: If `channel_attn` is unknown.
    """

    def __init__(
        self,
        dim: int,
        *,
        channel_attn: str = "gaussian",
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        make_attn = look_up(CHANNEL_ATTENTIONS, channel_attn, "channel_attn")
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.attn = make_attn(dim, norm_layer=norm_layer, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.attn(self.conv(x)))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the gate's norm folded, and the last norm a scale and a shift."""
        return with_parts(self, attn=fused_or_same(self.attn), norm=as_affine(self.norm, self.conv.weight))

    def split_norm(self) -> tuple[nn.Module, Scales | None]:
        """This mixer fused and without its last norm, and that norm as scale and shift of all channels."""
        affine = affine_of(self.norm)
        if affine is None:
            return self.fuse(), None
        return with_parts(self, attn=fused_or_same(self.attn), norm=nn.Identity()), affine
