"""Channel attentions for the untouched channels of `PAT_ch`, by name in `CHANNEL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor, nn

from .fused import Scales, affine_of, fold, make_linear
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
        squeezed = torch.stack((mean, std), dim=-1).flatten(1).to(x.dtype)  # (N, 2 C)
        # The convolution's one position is a matrix product, which costs a CPU a tenth of it in training.
        mixed = F.linear(squeezed, self.mix.weight.flatten(1))
        return F.hardsigmoid(self.norm(mixed[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        return self if affine is None else FusedGaussianChannelAttention(self.mix, affine).eval()


class FusedGaussianChannelAttention(nn.Module):
    """`GaussianChannelAttention` for inference: the mix is one linear layer of `[mu, sigma]`, its norm within.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, mix: nn.Conv2d, after: Scales) -> None:
        super().__init__()
        folded = fold(mix, after=after)
        weight = folded.weight[:, :, 0, :].transpose(1, 2).flatten(1)  # (C, 2 C): of the means, then of the deviations
        self.mix = make_linear(mix, weight, folded.bias)

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.mean((2, 3), keepdim=True)
        # A norm of the vector, not a variance: runtimes read the map once for it, and need no gradient here.
        std = torch.linalg.vector_norm(wide - mean, dim=(2, 3)) / max(x.shape[2] * x.shape[3] - 1, 1) ** 0.5
        squeezed = torch.cat((mean.flatten(1), std), dim=1).to(x.dtype)  # (N, 2 C)
        return F.hardsigmoid(self.mix(squeezed))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


CHANNEL_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": GaussianChannelAttention,
    "none": no_attention,
}
