"""Channel attentions for the untouched channels of `PAT_ch`, by name in `CHANNEL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor, nn

from .fused import affine_of, fold, with_parts
from .norm import BatchNorm2d
from .table import no_attention

__all__ = ["CHANNEL_ATTENTIONS", "GaussianChannelAttention", "spatial_mean_std"]


@register_notrace_function
def spatial_mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each channel over its map, in float32 or wider.

    Equal to `x.mean((2, 3))` and `x.std((2, 3))`, and sound where those are not: half precision is widened
    before anything is summed, the deviation of a 1x1 map is 0 in place of NaN, and the gradient at a constant
    map is 0 in place of NaN.

    Shapes: `(N, C, H, W)` to two of `(N, C)`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    pixels = x.shape[2] * x.shape[3]
    mean = x.mean((2, 3), keepdim=True)
    # Written out, for torch.var_mean is not vectorised on a CPU: up to eight times as slow.
    var = (x - mean).square().sum((2, 3)) / max(pixels - 1, 1)
    # clamp_min passes no gradient below its bound, so sqrt is never differentiated at 0.
    return mean.flatten(1), var.clamp_min(1e-12).sqrt()


class GaussianChannelAttention(nn.Module):
    """The paper's Gaussian channel attention: gates from the mean and deviation of each channel.

    One dense mix reads both statistics of every channel, as a convolution with kernel (1, 2) over
    `[mu, sigma]`; BatchNorm and hard-sigmoid make it a gate in [0, 1] for each channel.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), section on PAT_ch.
    """

    def __init__(
        self, dim: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.mix = nn.Conv2d(dim, dim, (1, 2), bias=False, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        mean, std = spatial_mean_std(x)  # (N, C) each
        squeezed = torch.stack((mean, std), dim=-1).unsqueeze(2).to(x.dtype)  # (N, C, 1, 2)
        return F.hardsigmoid(self.norm(self.mix(squeezed)))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        if affine is None:
            return self
        return with_parts(self, mix=fold(self.mix, after=affine), norm=nn.Identity())


CHANNEL_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": GaussianChannelAttention,
    "none": no_attention,
}
