"""Linear attention: self-attention whose cost grows with the number of positions, not with its square."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from .frame import channels_per_head

__all__ = ["LinearAttention"]


@register_notrace_module
class LinearAttention(nn.Module):
    """Linear attention over the positions of a map.

    `y_i = sum_j (f(q_i) . f(k_j)) v_j / sum_j f(q_i) . f(k_j)` with `f(z) = elu(z) + 1`, for each head; the sums over
    `j` are taken once for all `i`. There are no logits, and so no relative position term and no dropout of weights.

    Shapes: `(N, C, H, W)` to the same. From Katharopoulos et al., ICML 2020 (arXiv 2006.16236), equations 4 to 7.

    Args:
        dim: Channels `C`.
        num_heads: Heads; must divide `C`.
        proj_drop: Dropout after the projection, in training.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, *, num_heads: int = 6, proj_drop: float = 0.1, device=None, dtype=None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = channels_per_head(num_heads, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`f(q)`, `f(k) / (H * W)` and values, `(N, heads, H * W, head_dim)` each, in float32 or wider."""
        batch, _, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2))  # (N, H * W, 3 * C)
        wide = qkv.float() if qkv.dtype in (torch.float16, torch.bfloat16) else qkv
        heads = wide.view(batch, height * width, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        # Means instead of sums: the quotient is the same, and nothing overflows.
        return F.elu(q) + 1, (F.elu(k) + 1) / (height * width), v

    def attention(self, x: Tensor) -> Tensor:
        """The attention weights, `(N, heads, H * W, H * W)` from query to key; each row sums to 1."""
        q, k, _ = self.project(x)
        weights = q @ k.transpose(2, 3)
        return weights / weights.sum(3, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.project(x)
        context = k.transpose(2, 3) @ v  # (N, heads, head_dim, head_dim)
        total = q @ k.sum(2).unsqueeze(3)  # (N, heads, H * W, 1)
        attended = (q @ context / (total + 1e-6)).transpose(1, 2).flatten(2).to(x.dtype)
        return self.proj_drop(self.proj(attended)).transpose(1, 2).reshape(batch, channels, height, width)
