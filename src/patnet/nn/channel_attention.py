"""Channel attentions for the untouched channels of `PAT_ch`, by name in `CHANNEL_ATTENTIONS`.

An entry is called as `entry(dim, norm_layer=..., device=..., dtype=...)` and gives a module that maps
`(N, C, H, W)` to the same shape.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import EcaModule, SEModule
from torch import Tensor, nn

from .fused import Scales, affine_of, fold, make_linear, with_parts
from .gct import GCT
from .norm import BatchNorm2d
from .srm import SRM
from .statistics import spatial_mean_std, spatial_quantiles
from .table import no_attention

__all__ = [
    "CHANNEL_ATTENTIONS",
    "ChannelAttention",
    "GaussianChannelAttention",
    "MeanChannelAttention",
    "QuantileChannelAttention",
]


class ChannelAttention(nn.Module):
    """Gates from statistics of each channel's map: what the paper's Gaussian attention is one case of.

    One dense mix reads the `count` statistics of every channel, as a convolution with kernel (1, count) over the
    `C x 1 x count` tensor of them; BatchNorm and hard-sigmoid make it a gate in [0, 1] for each channel.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(
        self, dim: int, count: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.mix = nn.Conv2d(dim, dim, (1, count), bias=False, device=device, dtype=dtype)
        self.norm = norm_layer(dim, device=device, dtype=dtype)

    def squeeze(self, x: Tensor) -> Tensor:
        """The statistics of `x`, `(N, C, count)`."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """The gates of `x`, `(N, C, 1, 1)` in [0, 1]."""
        squeezed = self.squeeze(x).flatten(1).to(x.dtype)  # (N, count * C)
        # The convolution's one position is a matrix product, which costs a CPU a tenth of it in training.
        mixed = F.linear(squeezed, self.mix.weight.flatten(1), self.mix.bias)
        return F.hardsigmoid(self.norm(mixed[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        return self if affine is None else with_parts(self, mix=fold(self.mix, after=affine), norm=nn.Identity())


class GaussianChannelAttention(ChannelAttention):
    """The paper's Gaussian channel attention: gates from the mean and deviation of each channel.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), section on PAT_ch.
    """

    def __init__(
        self, dim: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__(dim, 2, norm_layer=norm_layer, device=device, dtype=dtype)

    def squeeze(self, x: Tensor) -> Tensor:
        mean, std = spatial_mean_std(x)  # (N, C) each
        return torch.stack((mean, std), dim=-1)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the mix."""
        affine = affine_of(self.norm)
        return self if affine is None else FusedGaussianChannelAttention(self.mix, affine).eval()


class MeanChannelAttention(ChannelAttention):
    """The Gaussian attention with the mean alone, to tell what the deviation adds.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(
        self, dim: int, *, norm_layer: Callable[..., nn.Module] = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__(dim, 1, norm_layer=norm_layer, device=device, dtype=dtype)

    def squeeze(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).unsqueeze(-1)


class QuantileChannelAttention(ChannelAttention):
    """The Gaussian attention with quantiles in place of mean and deviation: it takes no form of distribution for given.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        dim: Channels `C`.
        parts: The statistics are the `parts - 1` quantiles that cut the values into so many parts: of 4, the
            quartiles 0.25, 0.5 and 0.75.

    Raises:
        ValueError: If `parts` is below 2.
    """

    def __init__(
        self,
        dim: int,
        parts: int = 4,
        *,
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        if parts < 2:
            raise ValueError(f"parts={parts} has no quantile between its parts: at least 2 are needed")
        super().__init__(dim, parts - 1, norm_layer=norm_layer, device=device, dtype=dtype)
        self.parts = parts

    def squeeze(self, x: Tensor) -> Tensor:
        return spatial_quantiles(x, self.parts)


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


def _se(dim: int, *, norm_layer: object = None, device=None, dtype=None) -> nn.Module:
    """Squeeze and excitation (Hu et al., arXiv 1709.01507), timm's: C / 16 channels between, at least 8."""
    return SEModule(dim, device=device, dtype=dtype)


def _eca(dim: int, *, norm_layer: object = None, device=None, dtype=None) -> nn.Module:
    """Efficient channel attention (Wang et al., arXiv 1910.03151), timm's: a convolution along the channels."""
    return EcaModule(dim, device=device, dtype=dtype)


CHANNEL_ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": GaussianChannelAttention,
    "mean": MeanChannelAttention,
    "quantile": QuantileChannelAttention,
    "se": _se,
    "srm": SRM,
    "eca": _eca,
    "gct": GCT,
    "none": no_attention,
}
