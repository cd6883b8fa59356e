"""PAT_ch: partial channel attention, the mixer of the paper's stages 1 to 3, and its full counterpart."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native
from .channel_attention import CHANNEL_ATTENTIONS, FusedGaussianChannelAttention, GaussianChannelAttention
from .folding import Affine, affine_of, fused, with_parts
from .frame import ConvAttention
from .norm import BatchNorm2d
from .table import Layer, look_up, one_of

__all__ = ["CH_NORM_POSITIONS", "Full_ch", "PAT_ch"]

CH_NORM_POSITIONS = ("untouched", "all")


class PAT_ch(ConvAttention):
    """Partial channel attention: 3x3 convolution of the first `C_p` channels, channel attention on the others.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), figure of the PAT block.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        full: See `Full_ch`.
        channel_attn: Name in `CHANNEL_ATTENTIONS`.
        ch_norm_position: `"untouched"`, a norm of the attended channels alone, as in the authors' code; or `"all"`, of
            all channels after the concatenation, as the paper draws it.
        norm_layer: Class of that norm and of the gate's.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        full: bool = False,
        channel_attn: str = "gaussian",
        ch_norm_position: str = "untouched",
        norm_layer: Layer = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        make_attn = look_up(CHANNEL_ATTENTIONS, channel_attn, "channel_attn")
        # In the full form, both are of all channels.
        over_all = one_of(ch_norm_position, CH_NORM_POSITIONS, "ch_norm_position") == "all" and not full
        super().__init__(dim, partial_ratio, full=full, **dd)
        attended = self.split[1]
        self.attn = make_attn(attended, norm_layer=norm_layer, **dd)
        self.norm = nn.Identity() if over_all else norm_layer(attended, **dd)
        self.norm_all = norm_layer(dim, **dd) if over_all else nn.Identity()

    def attend(self, x2: Tensor) -> Tensor:
        """The channel attention over `x2` and its norm, `(N, attended, H, W)` to the same."""
        return self.norm(self.attn(x2))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not self.full and isinstance(self.norm_all, nn.Identity):
            # Of maps with other channels PyTorch says what is wrong.
            gaussian = isinstance(self.attn, GaussianChannelAttention)
            takes = gaussian and native.takes(x, self.conv, self.attn, self.attn.mix, self.norm)
            if takes and x.shape[1] == sum(self.split):
                return native.channel_attention(x, self.conv, self.attn, self.norm)
            fused_gaussian = isinstance(self.attn, FusedGaussianChannelAttention) and isinstance(self.norm, nn.Identity)
            takes = fused_gaussian and native.takes(x, self.conv, self.attn, self.attn.mix, grad=False)
            if takes and x.shape[1] == sum(self.split):
                return native.fused_channel_attention(x, self.conv, self.attn.mix)
        return self.compute(x)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the gate's norm folded, and the last norm an `Affine` of all channels."""
        affine, first = affine_of(self.norm_all), 0
        if affine is None:
            affine, first = affine_of(self.norm), 0 if self.full else self.split[0]
        if affine is None:  # fused already, or a norm that depends on its input
            return with_parts(self, attn=fused(self.attn))
        scale, shift = F.pad(affine[0], (first, 0), value=1.0), F.pad(affine[1], (first, 0))
        bare = with_parts(self, attn=fused(self.attn), norm=nn.Identity(), norm_all=nn.Identity())
        return nn.Sequential(bare, Affine(scale, shift, self.conv.weight)).eval()


class Full_ch(PAT_ch):
    """The full form of `PAT_ch`, to compare it with: every channel is convolved, and then attended to.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        **options: As in `PAT_ch`, without `partial_ratio`.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, 1.0, full=True, **options)
