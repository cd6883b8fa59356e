"""Window attention: self-attention within the windows that tile a map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frame import channels_per_head
from .relative_position import relative_position

__all__ = ["WindowAttention"]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of a map, with the relative position term of `PAT_sf`.

    The windows tile the map from its upper left corner; those that reach over its edges attend to the positions inside.
    They are not shifted between blocks, because the convolution of the frame crosses their borders. A program that
    torch.export made from a map of several windows each way takes other such maps only.

    Shapes: `(N, C, H, W)` to the same, for any H and W. The windows are those of Swin, Liu et al., ICCV 2021
    (arXiv 2103.14030).

    Args:
        dim: Channels `C`.
        window_size: Side of a window, in positions of the map.
        num_heads: Heads; must divide `C`.
        position_method: `"euclidean"`, `"product"` or `"none"`, see `RelativePosition`.
        position_mode: `"bias"` or `"contextual"`.
        attn_drop: Dropout of the attention weights, in training.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `window_size` is below 1, or a position option is unknown.
    """

    def __init__(
        self,
        dim: int,
        window_size: int = 7,
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
        if window_size < 1:
            raise ValueError(f"window_size={window_size} has no position: at least 1 is needed")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.window_size = window_size
        self.num_heads = num_heads
        self.head_dim = channels_per_head(num_heads, dim)
        self.scale = self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.position = relative_position(num_heads, self.head_dim, position_method, position_mode, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def tiling(self, x: Tensor) -> tuple[int, int]:
        """How many windows cover the rows and the columns of a map."""
        side = self.window_size
        return (x.shape[2] + side - 1) // side, (x.shape[3] + side - 1) // side

    def windows(self, x: Tensor, rows: int, cols: int) -> Tensor:
        """The windows of a map, `(N, C, H, W)` to `(N * rows * cols, side * side, C)`, with zeros beyond the edges."""
        side = self.window_size
        batch, channels, height, width = x.shape
        x = F.pad(x, (0, cols * side - width, 0, rows * side - height))
        x = x.reshape(batch, channels, rows, side, cols, side)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch * rows * cols, side * side, channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(N * windows, heads, side * side, head_dim)` each, and the term of the logits.

        That term is minus infinity at keys beyond the edges of the map, and elsewhere the position term.
        """
        side = self.window_size
        rows, cols = self.tiling(x)
        qkv = self.qkv(self.windows(x, rows, cols)).view(-1, side * side, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        inside = self.windows(torch.ones_like(x[:, :1]), rows, cols).view(-1, 1, 1, side * side)
        mask = inside.to(q.dtype).log()  # 0 inside the map, minus infinity beyond it
        if self.position is not None:
            mask = mask + self.position(q * self.scale, side, side)
        return q, k, v, mask

    def attention(self, x: Tensor) -> Tensor:
        """The attention weights, `(N * windows, heads, side * side, side * side)` from query to key."""
        q, k, _, mask = self.project(x)
        return ((q * self.scale) @ k.transpose(2, 3) + mask).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side = self.window_size
        rows, cols = self.tiling(x)
        q, k, v, mask = self.project(x)
        drop = self.attn_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop, scale=self.scale)
        y = self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))  # (N * windows, side * side, C)
        y = y.view(batch, rows, cols, side, side, channels).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(batch, channels, rows * side, cols * side)[:, :, :height, :width]
