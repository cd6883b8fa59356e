"""Fusing: the same network for inference, with its norms folded into its convolutions."""

import copy
from typing import Any

from timm.models import reparameterize_model
from torch import nn

from ..nn.fused import fused_or_same

__all__ = ["fuse"]


def fuse(model: nn.Module) -> nn.Module:
    """A new network that computes the same in evaluation mode, and faster; the given one is untouched.

    Every norm is folded that has a convolution to go into, the spatial attention's convolutions into the MLP's, and
    dropout and stochastic depth are gone. Works on a classifier, a `features_only` backbone, a single block of
    `patnet.nn`, and whatever holds any of these; fusing twice changes nothing. Other networks of timm's are fused
    as `timm.models.reparameterize_model` fuses them.

    Args:
        model: On any device and of any dtype; of float32 the result agrees to a relative error of about 1e-6.

    Returns:
        The network in evaluation mode. Setting it to training mode raises `RuntimeError`.
    """
    fused = reparameterize_model(fused_or_same(copy.deepcopy(model).eval()), inplace=True)
    module: Any
    for module in fused.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "drop_rate", None), float):
            module.drop_rate = 0.0
    return fused.eval()
