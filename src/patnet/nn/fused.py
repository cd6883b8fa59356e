"""What fusing for inference needs: norms folded into the convolutions beside them.

A block's `fuse()` gives a block that computes the same in evaluation mode; the given one is untouched. The
arithmetic is done in float64, so that the result is as exact as its dtype.
"""

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Affine",
    "FusedConv2d",
    "FusedLinear",
    "FusedPAT_sp",
    "affine_of",
    "as_affine",
    "exact",
    "fold",
    "fused_or_same",
    "make_conv",
    "make_linear",
    "with_parts",
]

Scales = tuple[Tensor, Tensor]


class _Fused(nn.Module):
    """What has a norm folded into it and so cannot be trained."""

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode: the statistics that training needs are gone.

        Raises:
            RuntimeError: If `mode` is true.
        """
        if mode:
            raise RuntimeError("a fused network cannot be trained: train the network that it was made from")
        return super().train(False)


class FusedConv2d(_Fused, nn.Conv2d):
    """A convolution with a norm folded into it. It computes and exports as any other, but cannot be trained."""


class FusedLinear(_Fused, nn.Linear):
    """A linear layer with a norm folded into it, likewise."""


class Affine(nn.Module):
    """`scale * x + shift` for each channel: a norm in evaluation mode that has no convolution beside it.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.view(1, -1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(shift.view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class FusedPAT_sp(nn.Module):
    """`PAT_sp` after a convolution that already computes its mixed half.

    The gate acts over the full width, `y = x * (s * scale + keep) + shift`, with `scale` zero on the mixed half and
    `keep` zero on the gated one: no half is split off and put back, which runtimes do by copying.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, gate_conv: FusedConv2d, scale: Tensor, keep: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.gate_conv = gate_conv
        self.scale, self.keep, self.shift = (
            nn.Parameter(value.view(1, -1, 1, 1), requires_grad=False) for value in (scale, keep, shift)
        )

    def gate(self, x: Tensor) -> Tensor:
        """The map that gates the first half, `(N, 1, H, W)` in [0, 1]."""
        return F.hardsigmoid(self.gate_conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, torch.addcmul(self.keep, self.gate(x), self.scale))


def exact(value: Tensor) -> Tensor:
    """`value` in float64 on the CPU, for not every device has that; a meta tensor stays one."""
    return value.detach().to("meta" if value.is_meta else "cpu", torch.float64)


def affine_of(norm: Any) -> Scales | None:
    """Scale and shift `(C,)` in float64 that `norm` is in evaluation mode, or None if it depends on its input."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    activates = not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or activates:
        return None
    weight = torch.ones_like(var) if norm.weight is None else norm.weight
    bias = torch.zeros_like(var) if norm.bias is None else norm.bias
    scale = exact(weight) / (exact(var) + norm.eps).sqrt()
    return scale, exact(bias) - exact(mean) * scale


def as_affine(norm: nn.Module, like: Tensor) -> nn.Module:
    """`norm` as a scale and a shift of the device and dtype of `like`, or itself if it depends on its input."""
    affine = affine_of(norm)
    return norm if affine is None else Affine(*(part.to(like) for part in affine))


def fold(conv: nn.Conv2d, before: Scales | None = None, after: Scales | None = None) -> FusedConv2d:
    """The convolution with an affine map of its input and one of its output folded in.

    Args:
        conv: Dense; with `before`, without padding, for a shift of the input does not reach the padding.
        before: Scale and shift of each input channel.
        after: Scale and shift of each output channel.
    """
    weight = exact(conv.weight)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else exact(conv.bias)
    if before is not None:
        bias = bias + (weight.sum((2, 3)) @ before[1])
        weight = weight * before[0].view(1, -1, 1, 1)
    if after is not None:
        bias = bias * after[0] + after[1]
        weight = weight * after[0].view(-1, 1, 1, 1)
    return make_conv(conv, weight, bias)


def make_conv(like: Any, weight: Tensor, bias: Tensor | None = None) -> FusedConv2d:
    """A convolution of the stride, padding, device, dtype and memory format of another, with these weights."""
    conv = FusedConv2d(
        weight.shape[1], weight.shape[0], like.kernel_size, like.stride, like.padding, bias=False, device="meta"
    )
    channels_last = like.weight.is_contiguous(memory_format=torch.channels_last) and not like.weight.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv.weight = nn.Parameter(weight.to(like.weight).contiguous(memory_format=layout), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.to(like.weight), requires_grad=False)
    return conv.eval()


def make_linear(like: Any, weight: Tensor, bias: Tensor | None) -> "FusedLinear":
    """A linear layer of the device and dtype of `like`, with these weights `(outputs, inputs)`."""
    linear = FusedLinear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(like.weight).contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(like.weight), requires_grad=False)
    return linear.eval()


def fused_or_same(module: Any) -> nn.Module:
    """What `module.fuse()` gives, or the module itself if it has nothing to fuse."""
    return module.fuse() if hasattr(module, "fuse") else module


def with_parts(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation mode with some of its children replaced."""
    fused = copy.copy(module)
    fused._modules = {**module._modules, **parts}
    return copy.deepcopy(fused).eval()
