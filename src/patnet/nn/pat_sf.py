"""PAT_sf: partial self-attention, the mixer of the paper's stage 4, and its full counterpart."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .folding import exact, make_conv
from .frame import SF_NORM_POSITIONS, ConvAttention, channels_per_head
from .relative_position import relative_position
from .table import one_of

__all__ = ["Full_sf", "FusedPAT_sf", "PAT_sf"]


class PAT_sf(ConvAttention):
    """Partial self-attention: 3x3 convolution of the first `C_p` channels, self-attention over positions on the others.

    Shapes: `(N, C, H, W)` to the same, for any H and W. From PATNet (arXiv 2503.03148), section on PAT_sf.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        full: See `Full_sf`.
        num_heads: Heads of the attention; must divide the number of attended channels.
        position_method: `"euclidean"`, `"product"` or `"none"`, see `RelativePosition`.
        position_mode: `"bias"` or `"contextual"`.
        sf_norm_position: `"before"`, a LayerNorm of the attended channels before the attention, as in the authors'
            code; or `"after"`, of all channels after the concatenation, as the paper writes it.
        attn_drop: Dropout of the attention weights, in training.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, `num_heads` does not divide the
            attended channels, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        full: bool = False,
        num_heads: int = 6,
        position_method: str = "euclidean",
        position_mode: str = "bias",
        sf_norm_position: str = "before",
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, partial_ratio, full=full, **dd)
        attended = self.split[1]
        before = one_of(sf_norm_position, SF_NORM_POSITIONS, "sf_norm_position") == "before"
        self.num_heads = num_heads
        self.head_dim = channels_per_head(num_heads, attended)
        self.scale = self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.norm = nn.LayerNorm(attended, eps=1e-6, **dd) if before else nn.Identity()
        self.qkv = nn.Linear(attended, 3 * attended, bias=False, **dd)
        self.position = relative_position(num_heads, self.head_dim, position_method, position_mode, **dd)
        self.proj = nn.Linear(attended, attended, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.norm_all = nn.Identity() if before else LayerNorm2d(dim, eps=1e-6, **dd)

    def project(self, x2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values of `x2`, `(N, heads, H * W, head_dim)` each, and the position term of the logits."""
        batch, _, height, width = x2.shape
        tokens = self.norm(x2.flatten(2).transpose(1, 2))  # (N, H * W, attended)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None
        if self.position is not None:
            bias = self.position(q * self.scale, height, width)
        return q, k, v, bias

    def attention(self, x2: Tensor) -> Tensor:
        """The attention weights, `(N, heads, H * W, H * W)` from query to key; each row sums to 1."""
        q, k, _, bias = self.project(x2)
        logits = (q * self.scale) @ k.transpose(2, 3)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, attended, H, W)` to the same."""
        batch, channels, height, width = x2.shape
        q, k, v, bias = self.project(x2)
        drop = self.attn_drop if self.training else 0.0
        if (
            self.training and torch.compiler.is_compiling()
        ):  # the compiler gives a bias strides that CUDA's kernels refuse
            logits = (q * self.scale) @ k.transpose(2, 3)
            weights = (logits if bias is None else logits + bias).softmax(dim=-1)
            y = F.dropout(weights, drop).to(v.dtype) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=self.scale)
        y = y.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)  # (N, H * W, attended)
        return self.proj_drop(self.proj(y)).transpose(1, 2).reshape(batch, channels, height, width)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, as convolutions of the map, and without the dropouts."""
        return FusedPAT_sf(self).eval()


class Full_sf(PAT_sf):
    """The full form of `PAT_sf`, to compare it with: every channel is convolved, and then attended to.

    Shapes: `(N, C, H, W)` to the same, for any H and W.

    Args:
        dim: Channels `C`.
        **options: As in `PAT_sf`, without `partial_ratio`.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, 1.0, full=True, **options)


class FusedPAT_sf(ConvAttention):
    """`PAT_sf` or `Full_sf` for inference: linear layers are 1x1 convolutions, channels stay in place.

    The weights of a LayerNorm before the attention and the scale of the queries are folded into the first of them.

    Shapes: `(N, C, H, W)` to the same, for any H and W.

    Args:
        block: What it computes the same as.
    """

    def __init__(self, block: PAT_sf) -> None:
        dim = block.split[0] if block.full else sum(block.split)
        super().__init__(dim, block.split[0] / dim, full=block.full, device="meta")
        self.num_heads, self.head_dim = block.num_heads, block.head_dim
        self.conv = make_conv(block.conv, exact(block.conv.weight))
        weight = exact(block.qkv.weight)
        scale = torch.ones_like(weight[:, :1])
        scale[: block.qkv.in_features] = block.scale
        weight = scale * weight
        shift = None
        self.norm: nn.Module = nn.Identity()
        if isinstance(block.norm, nn.LayerNorm):
            self.norm = LayerNorm2d(block.norm.normalized_shape[0], eps=block.norm.eps, affine=False)
            shift = weight @ exact(block.norm.bias)
            weight = weight * exact(block.norm.weight)
        like = nn.Conv2d(1, 1, 1).to(block.conv.weight)
        self.qkv = make_conv(like, weight[..., None, None], shift)
        self.position = copy.deepcopy(block.position)
        self.proj = make_conv(like, exact(block.proj.weight)[..., None, None], exact(block.proj.bias))
        self.norm_all = copy.deepcopy(block.norm_all)

    def weigh(self, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The attention weights, `(N, heads, H * W, H * W)`, and values, `(N, heads, head_dim, H * W)`."""
        batch, _, height, width = x2.shape
        qkv = self.qkv(self.norm(x2)).reshape(batch, 3, self.num_heads, self.head_dim, height * width)
        q, k, v = qkv.unbind(1)  # (N, heads, head_dim, H * W) each
        q = q.transpose(2, 3)
        logits = q @ k
        if self.position is not None:
            logits = logits + self.position(q, height, width)
        return logits.softmax(dim=-1), v

    def attention(self, x2: Tensor) -> Tensor:
        """The attention weights, `(N, heads, H * W, H * W)` from query to key; each row sums to 1."""
        return self.weigh(x2)[0]

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, attended, H, W)` to the same."""
        weights, v = self.weigh(x2)
        return self.proj((v @ weights.transpose(2, 3)).reshape(x2.shape))
