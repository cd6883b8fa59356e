"""Folding norms into convolutions for inference.

The protocol is timm's: `module.fuse()` gives a module that computes the same in evaluation mode, and leaves `module`
unchanged. What could be folded further into a neighbour is a module of its own in an `nn.Sequential`: an `Affine` at
the end, or a 1x1 convolution at the start. The arithmetic is done in float64.
"""

import copy
from typing import Any, Self

import torch
from timm.models import reparameterize_model
from torch import Tensor, nn

from . import native

__all__ = [
    "Affine",
    "FusedConv2d",
    "FusedLinear",
    "affine_of",
    "as_affine",
    "chain",
    "exact",
    "fold",
    "fused",
    "hardsigmoid_of",
    "make_conv",
    "make_linear",
    "split_affine",
    "with_parts",
]

Scales = tuple[Tensor, Tensor]


class _Fused(nn.Module):
    """A layer with a norm folded into it, which can no longer be trained."""

    def train(self, mode: bool = True) -> Self:
        """Refuse training mode: the statistics that training needs are gone.

        Raises:
            RuntimeError: If `mode` is true.
        """
        if mode:
            raise RuntimeError("a fused network cannot be trained: train the network that it was made from")
        return super().train(False)


@native.replaceable
class FusedConv2d(_Fused, nn.Conv2d):
    """A convolution with a norm folded into it. It computes and exports as any other, but cannot be trained."""


@native.replaceable
class FusedLinear(_Fused, nn.Linear):
    """A linear layer with a norm folded into it. It computes and exports as any other, but cannot be trained."""


class Affine(nn.Module):
    """`scale * x + shift` for each channel: a norm in evaluation mode.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        scale: `(C,)`.
        shift: `(C,)`.
        like: Tensor whose device and dtype it takes.
    """

    def __init__(self, scale: Tensor, shift: Tensor, like: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.to(like).view(1, -1, 1, 1), requires_grad=False)
        self.shift = nn.Parameter(shift.to(like).view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def exact(value: Tensor) -> Tensor:
    """`value` in float64 on the CPU, because not every device has that; a meta tensor stays on meta."""
    return value.detach().to("meta" if value.is_meta else "cpu", torch.float64)


def affine_of(norm: Any) -> Scales | None:
    """Scale and shift `(C,)` in float64 of `norm` in evaluation mode, or None if it depends on its input."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    activates = not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or activates:
        return None
    weight = torch.ones_like(var) if norm.weight is None else norm.weight
    bias = torch.zeros_like(var) if norm.bias is None else norm.bias
    scale = exact(weight) / (exact(var) + norm.eps).sqrt()
    return scale, exact(bias) - exact(mean) * scale


def hardsigmoid_of(scale: Tensor, shift: Tensor) -> Scales:
    """Scale and shift with which a clamp to [0, 1] is the hard-sigmoid of `scale * x + shift`."""
    return scale / 6, shift / 6 + 0.5


def as_affine(norm: nn.Module, like: Tensor) -> nn.Module:
    """`norm` as an `Affine` of the device and dtype of `like`, or itself if it depends on its input."""
    affine = affine_of(norm)
    return norm if affine is None else Affine(*affine, like)


def fold(conv: nn.Conv2d, before: Scales | None = None, after: Scales | None = None) -> FusedConv2d:
    """The convolution with an affine map of its input and one of its output folded in.

    Args:
        conv: Dense; with `before`, without padding, because a shift of the input does not reach the padding.
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


def chain(first: Any, second: Any) -> FusedConv2d:
    """One convolution for two 1x1 convolutions in a row, the second with a bias."""
    weight = exact(second.weight).flatten(1)
    bias = exact(second.bias)
    if first.bias is not None:
        bias = bias + weight @ exact(first.bias)
    return make_conv(first, (weight @ exact(first.weight).flatten(1))[..., None, None], bias)


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


def make_linear(like: Any, weight: Tensor, bias: Tensor) -> FusedLinear:
    """A linear layer of the device and dtype of `like`, with these weights `(outputs, inputs)`."""
    linear = FusedLinear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(like.weight).contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(bias.to(like.weight), requires_grad=False)
    return linear.eval()


def fused(module: Any) -> nn.Module:
    """`module.fuse()`, or a copy of `module` with fused children if it has no `fuse()` of its own."""
    return module.fuse() if hasattr(module, "fuse") else reparameterize_model(module)


def split_affine(module: Any) -> tuple[nn.Module, Scales | None]:
    """A fused module without the `Affine` at its end, and that one's scale and shift; None if it has none."""
    if isinstance(module, nn.Sequential) and isinstance(module[-1], Affine):
        return module[0], (exact(module[-1].scale).flatten(), exact(module[-1].shift).flatten())
    return module, None


def with_parts(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """A copy of `module` in evaluation mode with some of its children replaced."""
    replaced = copy.copy(module)
    replaced._modules = {**module._modules, **parts}
    return copy.deepcopy(replaced).eval()
