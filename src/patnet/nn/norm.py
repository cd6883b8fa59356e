"""Batch normalisation that also trains where a batch has a single value per channel."""

import torch
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn

from . import native

__all__ = ["BatchNorm2d"]


@native.replaceable
@register_notrace_module
class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, except that one value per channel does not raise in training.

    A batch of one image leaves one value per channel in the gate of `PAT_ch`, and everywhere once the maps are 1x1. One
    value has no variance, so such a batch is normalised with the running statistics and leaves them unchanged. Every
    other batch gives exactly what `torch.nn.BatchNorm2d` gives.

    Shapes: `(N, C, H, W)` to the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if torch.jit.is_scripting():  # TorchScript knows no super()
            momentum = 0.1 if self.momentum is None else self.momentum
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
            )
        if native.takes(x, self) and x.shape[1] == self.num_features:
            return native.norm(x, self)
        if not self.training or x.device.type == "meta" or torch.compiler.is_compiling():
            return super().forward(x)
        return self._forward_dense(x)

    @torch.jit.ignore
    def _forward_dense(self, x: Tensor) -> Tensor:
        """The same, with a dense input and a dense gradient.

        On a CPU, torch takes views of some channels through loops that are not vectorised, four to ten times as slow as
        making them dense; on a GPU through kernels that take twice as long.
        """
        dense = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
        y = super().forward(x.contiguous(memory_format=dense))
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.contiguous(memory_format=dense))
        return y
