"""Channel attentions for the untouched channels of `PAT_ch`, by name in `CHANNEL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import EcaModule, SEModule
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn

from . import native
from .folding import Scales, affine_of, as_affine, fold, hardsigmoid_of, make_linear, with_parts
from .norm import BatchNorm2d
from .table import Layer, no_attention

__all__ = [
    "CHANNEL_ATTENTIONS",
    "GCT",
    "SRM",
    "ChannelAttention",
    "GaussianChannelAttention",
    "MeanChannelAttention",
    "QuantileChannelAttention",
    "spatial_mean_std",
    "spatial_quantiles",
]


@register_notrace_function
def spatial_mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each channel over its map, in float32 or wider.

    Equal to `x.mean((2, 3))` and `x.std((2, 3))`, and defined where those are not: half precision is widened before
    anything is summed, the std of a 1x1 map is 0 instead of NaN, and so is the gradient at a constant map.

    Shapes: `(N, C, H, W)` to two of `(N, C)`.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    pixels = x.shape[2] * x.shape[3]
    mean = x.mean((2, 3), keepdim=True)
    # Written out because torch.var_mean is not vectorised on a CPU: up to eight times as slow.
    var = (x - mean).square().sum((2, 3)) / max(pixels - 1, 1)
    # clamp_min passes no gradient below its bound, so sqrt is never differentiated at 0.
    return mean.flatten(1), var.clamp_min(1e-12).sqrt()


@register_notrace_function
def spatial_quantiles(x: Tensor, parts: int = 4) -> Tensor:
    """The quantiles `1 / parts` to `(parts - 1) / parts` of each channel over its map.

    Equal to `torch.quantile`, which refuses inputs of more than 16 million values and half precision.

    Shapes: `(N, C, H, W)` to `(N, C, parts - 1)`.
    """
    ordered = x.flatten(2).sort(dim=2)[0]  # (N, C, H * W)
    last = x.shape[2] * x.shape[3] - 1
    quantiles = []
    for part in range(1, parts):
        # In integers, because sizes may be symbols: the quantile is at the position part * last / parts.
        below = part * last // parts
        above = (part * last + parts - 1) // parts
        share = (part * last - below * parts) / parts
        low, high = ordered.select(2, below), ordered.select(2, above)
        quantiles.append(low + share * (high - low))
    return torch.stack(quantiles, dim=2)


class ChannelAttention(nn.Module):
    """Gates from statistics of each channel's map; the paper's Gaussian attention is one case.

    One dense mix reads the `count` statistics of every channel, as a convolution with kernel (1, count) over the
    `C x 1 x count` tensor of them; BatchNorm and hard-sigmoid make it a gate in [0, 1] for each channel.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        count: Statistics of each channel.
        norm_layer: Class of the norm.
    """

    def __init__(self, dim: int, count: int, *, norm_layer: Layer = BatchNorm2d, device=None, dtype=None) -> None:
        super().__init__()
        self.mix = nn.Conv2d(dim, dim, (1, count), bias=False, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def squeeze(self, x: Tensor) -> Tensor:
        """The statistics of `x`, `(N, C, count)`."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        return self.excite(self.squeeze(x).to(x.dtype))

    def excite(self, squeezed: Tensor) -> Tensor:
        """The gates from the statistics, `(N, C, count)` to `(N, C, 1, 1)`."""
        squeezed = squeezed.flatten(1)  # (N, count * C)
        # The convolution's one position is a matrix product, which takes a CPU a tenth of the time in training.
        mixed = F.linear(squeezed, self.mix.weight.flatten(1), self.mix.bias)
        return F.hardsigmoid(self.norm(mixed[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        return self if affine is None else with_parts(self, mix=fold(self.mix, after=affine), norm=nn.Identity())


@native.replaceable
class GaussianChannelAttention(ChannelAttention):
    """The paper's Gaussian channel attention: gates from the mean and standard deviation of each channel.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), section on PAT_ch.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, 2, **options)

    def squeeze(self, x: Tensor) -> Tensor:
        mean, std = spatial_mean_std(x)  # (N, C) each
        return torch.stack((mean, std), dim=-1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        return self if affine is None else FusedGaussianChannelAttention(self.mix, affine).eval()


class MeanChannelAttention(ChannelAttention):
    """The Gaussian attention with the mean alone, to measure what the standard deviation adds.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, 1, **options)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).unsqueeze(-1)


class QuantileChannelAttention(ChannelAttention):
    """The Gaussian attention with quantiles instead of mean and standard deviation, without assuming a distribution.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        parts: The statistics are the `parts - 1` quantiles that cut the values into this many parts: with 4, the
            quartiles 0.25, 0.5 and 0.75.

    Raises:
        ValueError: If `parts` is below 2.
    """

    def __init__(self, dim: int, parts: int = 4, **options: Any) -> None:
        if parts < 2:
            raise ValueError(f"parts={parts} has no quantile between its parts: at least 2 are needed")
        super().__init__(dim, parts - 1, **options)
        self.parts = parts

    def squeeze(self, x: Tensor) -> Tensor:
        return spatial_quantiles(x, self.parts)


@native.replaceable
class FusedGaussianChannelAttention(nn.Module):
    """`GaussianChannelAttention` for inference: one linear layer of `[mu, sigma]` that includes the norm.

    It also includes the scale and shift of the hard-sigmoid, of which a clamp is left.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, mix: nn.Conv2d, after: Scales) -> None:
        super().__init__()
        folded: Any = fold(mix, after=hardsigmoid_of(*after))
        weight = folded.weight[:, :, 0, :].transpose(1, 2).flatten(1)  # (C, 2 C): of the means, then of the stds
        self.mix = make_linear(mix, weight, folded.bias)

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.mean((2, 3), keepdim=True)
        # A norm of the vector, not a variance: runtimes read the map once for it, and need no gradient here.
        std = torch.linalg.vector_norm(wide - mean, dim=(2, 3)) / max(x.shape[2] * x.shape[3] - 1, 1) ** 0.5
        squeezed = torch.cat((mean.flatten(1), std), dim=1).to(x.dtype)  # (N, 2 C)
        return self.mix(squeezed).clamp(0, 1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x


class SRM(nn.Module):
    """Style-based recalibration: gates from the mean and standard deviation, each channel by itself.

    `g = sigmoid(BatchNorm(w_1 * mu + w_2 * sigma))` with two weights for each channel, which start at zero as the
    authors' do. The mix of the paper's Gaussian attention is dense instead.

    Shapes: `(N, C, H, W)` to the same. From Lee et al., ICCV 2019 (arXiv 1903.10829), equations 1 to 5.
    """

    def __init__(self, dim: int, *, norm_layer: Layer = BatchNorm2d, device=None, dtype=None) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(dim, 2, device=device, dtype=dtype))
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        mean, std = spatial_mean_std(x)  # (N, C) each
        mixed = (torch.stack((mean, std), dim=-1).to(x.dtype) * self.mix).sum(-1)
        return torch.sigmoid(self.norm(mixed[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm a scale and a shift."""
        return with_parts(self, norm=as_affine(self.norm, self.mix))


@register_notrace_module
class GCT(nn.Module):
    """Gated channel transformation: channels compete or cooperate by the sizes of their maps.

    `s_c = alpha_c ||x_c||_2`, `s'_c = sqrt(C) s_c / ||s||_2`, `y_c = x_c (1 + tanh(gamma_c s'_c + beta_c))`, with
    three weights for each channel and 1e-5 under both roots. It starts as the identity: `alpha = 1`,
    `gamma = beta = 0`.

    Shapes: `(N, C, H, W)` to the same. From Yang et al., CVPR 2020 (arXiv 1909.11519), equations 1 to 4, in the
    authors' form, whose last root is of a mean.
    """

    def __init__(self, dim: int, *, norm_layer: object = None, device=None, dtype=None) -> None:
        super().__init__()
        self.eps = 1e-5
        # One dimension each, so no weight decay, which the paper requires for beta.
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


def _se(dim: int, *, norm_layer: object = None, device=None, dtype=None) -> nn.Module:
    """Squeeze and excitation (Hu et al., arXiv 1709.01507), timm's: C / 16 channels between, at least 8."""
    return SEModule(dim, device=device, dtype=dtype)


def _eca(dim: int, *, norm_layer: object = None, device=None, dtype=None) -> nn.Module:
    """Efficient channel attention (Wang et al., arXiv 1910.03151), timm's: a convolution along the channels."""
    return EcaModule(dim, device=device, dtype=dtype)


CHANNEL_ATTENTIONS: dict[str, Layer] = {
    "gaussian": GaussianChannelAttention,
    "mean": MeanChannelAttention,
    "quantile": QuantileChannelAttention,
    "se": _se,
    "srm": SRM,
    "eca": _eca,
    "gct": GCT,
    "none": no_attention,
}
