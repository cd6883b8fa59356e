"""Statistics of each channel's map, which the channel attentions read."""

import torch
from timm.models import register_notrace_function
from torch import Tensor

__all__ = ["spatial_mean_std", "spatial_quantiles"]


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
        # In whole numbers, as sizes may be symbols: the quantile lies at the position part * last / parts.
        below = part * last // parts
        above = (part * last + parts - 1) // parts
        share = (part * last - below * parts) / parts
        low, high = ordered.select(2, below), ordered.select(2, above)
        quantiles.append(low + share * (high - low))
    return torch.stack(quantiles, dim=2)
