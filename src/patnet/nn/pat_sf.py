"""PAT_sf: partial self-attention, the mixer of the paper's stage 4."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import exact, make_conv
from .partial_conv import split_channels
from .relative_position import RelativePosition

__all__ = ["PAT_sf"]


class PAT_sf(nn.Module):
    """Partial self-attention: 3x3 convolution of the first `C_p` channels, self-attention over positions on the others.

    Shapes: `(N, C, H, W)` to the same, for any H and W. From PATNet (arXiv 2503.03148), section on PAT_sf. The
    attended channels are normalised before the attention, as in the authors' code; the paper normalises after
    the concatenation.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        num_heads: Heads of the attention; must divide the number of untouched channels.
        position_method: `"euclidean"`, `"product"` or `"none"`, see `RelativePosition`.
        position_mode: `"bias"` or `"contextual"`.
        attn_drop: Dropout of the attention weights, in training.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, `num_heads` does not divide the
            untouched channels, or a position option is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        num_heads: int = 6,
        position_method: str = "euclidean",
        position_mode: str = "bias",
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.split = list(split_channels(dim, partial_ratio))
        convolved, untouched = self.split
        if num_heads < 1 or untouched % num_heads:
            fitting = [heads for heads in range(1, min(untouched, 16) + 1) if untouched % heads == 0]
            raise ValueError(
                f"num_heads={num_heads} does not divide the {untouched} attended of {dim} channels: "
                f"possible are {', '.join(map(str, fitting))}"
            )
        self.num_heads = num_heads
        self.head_dim = untouched // num_heads
        self.scale = self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False, **dd)
        self.norm = nn.LayerNorm(untouched, eps=1e-6, **dd)
        self.qkv = nn.Linear(untouched, 3 * untouched, bias=False, **dd)
        self.position = (
            None
            if position_method == "none"
            else RelativePosition(num_heads, self.head_dim, method=position_method, mode=position_mode, **dd)
        )
        self.proj = nn.Linear(untouched, untouched, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, C_u, H, W)` to the same."""
        batch, channels, height, width = x2.shape
        tokens = self.norm(x2.flatten(2).transpose(1, 2))  # (N, H * W, C_u)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, H * W, head_dim) each
        bias = None
        if self.position is not None:
            bias = self.position(q * self.scale, height, width)
        drop = self.attn_drop if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=self.scale)
        attended = attended.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)
        return self.proj_drop(self.proj(attended)).transpose(1, 2).reshape(batch, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.attend(x2)
        return torch.cat((y1, y2), dim=1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, as convolutions of the map, and without the dropouts."""
        return FusedPAT_sf(self).eval()


class FusedPAT_sf(nn.Module):
    """`PAT_sf` for inference: its linear layers are 1x1 convolutions, and the channels stay where they are.

    The LayerNorm's weights and the scale of the queries are folded into the first of them.

    Shapes: `(N, C, H, W)` to the same, for any H and W.
    """

    def __init__(self, block: PAT_sf) -> None:
        super().__init__()
        self.split, untouched = block.split, block.split[1]
        self.num_heads, self.head_dim = block.num_heads, block.head_dim
        self.eps = block.norm.eps
        self.conv = make_conv(block.conv, exact(block.conv.weight))
        weight = exact(block.qkv.weight)
        scale = torch.ones_like(weight[:, 0])
        scale[:untouched] = block.scale
        shift = scale * (weight @ exact(block.norm.bias))
        weight = scale.unsqueeze(1) * weight * exact(block.norm.weight)
        like = nn.Conv2d(1, 1, 1).to(block.conv.weight)
        self.qkv = make_conv(like, weight[..., None, None], shift)
        self.position = copy.deepcopy(block.position)
        self.proj = make_conv(like, exact(block.proj.weight)[..., None, None], exact(block.proj.bias))

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, C_u, H, W)` to the same."""
        batch, channels, height, width = x2.shape
        x = F.layer_norm(x2.permute(0, 2, 3, 1), (channels,), eps=self.eps).permute(0, 3, 1, 2)
        qkv = self.qkv(x).reshape(batch, 3, self.num_heads, self.head_dim, height * width)
        q, k, v = qkv.unbind(1)  # (N, heads, head_dim, H * W) each
        q = q.transpose(2, 3)
        logits = q @ k
        if self.position is not None:
            logits = logits + self.position(q, height, width)
        attended = v @ logits.softmax(dim=-1).transpose(2, 3)
        return self.proj(attended.reshape(batch, channels, height, width))

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.attend(x2)
        return torch.cat((y1, y2), dim=1)
