"""GCT: gated channel transformation."""

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

__all__ = ["GCT"]


@register_notrace_module
class GCT(nn.Module):
    """Gated channel transformation: channels compete or work together by the sizes of their maps.

    `s_c = alpha_c ||x_c||_2`, `s'_c = sqrt(C) s_c / ||s||_2`, `y_c = x_c (1 + tanh(gamma_c s'_c + beta_c))`, with
    three weights for each channel and 1e-5 under both roots. It starts as the identity: `alpha = 1`,
    `gamma = beta = 0`.

    Shapes: `(N, C, H, W)` to the same. From Yang et al., CVPR 2020 (arXiv 1909.11519), equations 1 to 4, in the
    authors' form, whose last root is of a mean.
    """

    def __init__(self, dim: int, *, norm_layer: object = None, device=None, dtype=None) -> None:
        super().__init__()
        self.eps = 1e-5
        # Of one dimension each: no weight decay, which the paper asks for beta.
        self.alpha = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 2]."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares overflow half precision
        size = self.alpha * (wide.square().sum((2, 3)) + self.eps).sqrt()  # (N, C)
        relative = size * (size.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (1 + torch.tanh(self.gamma * relative + self.beta))[:, :, None, None].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x
