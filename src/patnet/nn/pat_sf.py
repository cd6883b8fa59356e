"""PAT_sf: partial self-attention, the mixer of the paper's stage 4, and its full counterpart."""

import copy

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from .attention_frame import SF_NORM_POSITIONS, channels_of_head
from .fused import exact, make_conv
from .partial_conv import split_channels
from .relative_position import relative_position
from .table import one_of

__all__ = ["Full_sf", "PAT_sf"]


class _ConvAndSelfAttention(nn.Module):
    """A 3x3 convolution of `convolved` channels and self-attention over the positions of `attended` ones.

    What `PAT_sf` and `Full_sf` are made of. It holds its layers side by side, as the checkpoints name them.
    """

    def __init__(
        self,
        dim: int,
        convolved: int,
        attended: int,
        *,
        num_heads: int = 6,
        position_method: str = "euclidean",
        position_mode: str = "bias",
        norm_position: str = "before",
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        before = one_of(norm_position, SF_NORM_POSITIONS, "norm_position") == "before"
        self.num_heads = num_heads
        self.head_dim = channels_of_head(num_heads, attended, dim)
        self.scale = self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False, **dd)
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
        """The weights by which `attend` averages, `(N, heads, H * W, H * W)` from query to key; each row sums to 1."""
        q, k, _, bias = self.project(x2)
        logits = (q * self.scale) @ k.transpose(2, 3)
        return (logits if bias is None else logits + bias).softmax(dim=-1)

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, attended, H, W)` to the same."""
        batch, channels, height, width = x2.shape
        q, k, v, bias = self.project(x2)
        drop = self.attn_drop if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop, scale=self.scale)
        attended = attended.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)
        return self.proj_drop(self.proj(attended)).transpose(1, 2).reshape(batch, channels, height, width)


class PAT_sf(_ConvAndSelfAttention):
    """Partial self-attention: 3x3 convolution of the first `C_p` channels, self-attention over positions on the others.

    Shapes: `(N, C, H, W)` to the same, for any H and W. From PATNet (arXiv 2503.03148), section on PAT_sf.

    Args:
        dim: Channels `C`.
        partial_ratio: Share of the channels that is convolved.
        num_heads: Heads of the attention; must divide the number of untouched channels.
        position_method: `"euclidean"`, `"product"` or `"none"`, see `RelativePosition`.
        position_mode: `"bias"` or `"contextual"`.
        norm_position: `"before"`, a LayerNorm of the attended channels before the attention, as in the authors' code;
            or `"after"`, of all channels after the concatenation, as the paper writes it.
        attn_drop: Dropout of the attention weights, in training.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `partial_ratio` leaves either part without a channel, `num_heads` does not divide the
            untouched channels, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        partial_ratio: float = 0.25,
        *,
        num_heads: int = 6,
        position_method: str = "euclidean",
        position_mode: str = "bias",
        norm_position: str = "before",
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        split = list(split_channels(dim, partial_ratio))
        super().__init__(
            dim,
            *split,
            num_heads=num_heads,
            position_method=position_method,
            position_mode=position_mode,
            norm_position=norm_position,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.attend(x2)
        return self.norm_all(torch.cat((y1, y2), dim=1))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, as convolutions of the map, and without the dropouts."""
        return FusedPAT_sf(self).eval()


class Full_sf(_ConvAndSelfAttention):
    """Full self-attention: 3x3 convolution of all channels, then self-attention over positions on all of them.

    The counterpart of `PAT_sf` to compare it with: every channel gets what there either part gets, the convolution
    or the norm and the attention.

    Shapes: `(N, C, H, W)` to the same, for any H and W.

    Args:
        dim: Channels `C`.
        num_heads: Heads of the attention; must divide `C`.
        position_method: `"euclidean"`, `"product"` or `"none"`, see `RelativePosition`.
        position_mode: `"bias"` or `"contextual"`.
        norm_position: `"before"`, the LayerNorm stands between convolution and attention; or `"after"` both.
        attn_drop: Dropout of the attention weights, in training.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or a name is unknown.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 6,
        position_method: str = "euclidean",
        position_mode: str = "bias",
        norm_position: str = "before",
        attn_drop: float = 0.1,
        proj_drop: float = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            dim,
            dim,
            dim,
            num_heads=num_heads,
            position_method=position_method,
            position_mode=position_mode,
            norm_position=norm_position,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_all(self.attend(self.conv(x)))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, as convolutions of the map, and without the dropouts."""
        return FusedFull_sf(self).eval()


class FusedConvAndSelfAttention(nn.Module):
    """The layers of `PAT_sf` or `Full_sf` for inference: linear layers are 1x1 convolutions, channels stay in place.

    A LayerNorm before the attention has its weights folded into the first of them, as has the scale of the queries.
    """

    def __init__(self, block: _ConvAndSelfAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = block.num_heads, block.head_dim
        self.conv = make_conv(block.conv, exact(block.conv.weight))
        weight = exact(block.qkv.weight)
        scale = torch.ones_like(weight[:, 0])
        scale[: block.qkv.in_features] = block.scale
        weight = scale.unsqueeze(1) * weight
        shift = None
        self.norm: nn.Module = nn.Identity()
        if isinstance(block.norm, nn.LayerNorm):
            self.norm = nn.LayerNorm(block.norm.normalized_shape, eps=block.norm.eps, elementwise_affine=False)
            shift = weight @ exact(block.norm.bias)
            weight = weight * exact(block.norm.weight)
        like = nn.Conv2d(1, 1, 1).to(block.conv.weight)
        self.qkv = make_conv(like, weight[..., None, None], shift)
        self.position = copy.deepcopy(block.position)
        self.proj = make_conv(like, exact(block.proj.weight)[..., None, None], exact(block.proj.bias))
        self.norm_all = copy.deepcopy(block.norm_all)

    def weigh(self, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the attention, `(N, heads, H * W, H * W)`, and values, `(N, heads, head_dim, H * W)`."""
        batch, _, height, width = x2.shape
        x = self.norm(x2.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        qkv = self.qkv(x).reshape(batch, 3, self.num_heads, self.head_dim, height * width)
        q, k, v = qkv.unbind(1)  # (N, heads, head_dim, H * W) each
        q = q.transpose(2, 3)
        logits = q @ k
        if self.position is not None:
            logits = logits + self.position(q, height, width)
        return logits.softmax(dim=-1), v

    def attention(self, x2: Tensor) -> Tensor:
        """The weights by which `attend` averages, `(N, heads, H * W, H * W)` from query to key; each row sums to 1."""
        return self.weigh(x2)[0]

    def attend(self, x2: Tensor) -> Tensor:
        """Self-attention over the positions of `x2`, `(N, attended, H, W)` to the same."""
        weights, v = self.weigh(x2)
        return self.proj((v @ weights.transpose(2, 3)).reshape(x2.shape))


class FusedPAT_sf(FusedConvAndSelfAttention):
    """`PAT_sf` for inference.

    Shapes: `(N, C, H, W)` to the same, for any H and W.
    """

    def __init__(self, block: PAT_sf) -> None:
        super().__init__(block)
        self.split = block.split

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, self.split, dim=1)
        y1 = self.conv(x1)
        y2 = self.attend(x2)
        return self.norm_all(torch.cat((y1, y2), dim=1))


class FusedFull_sf(FusedConvAndSelfAttention):
    """`Full_sf` for inference.

    Shapes: `(N, C, H, W)` to the same, for any H and W.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_all(self.attend(self.conv(x)))
