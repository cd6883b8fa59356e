"""Grad-CAM: which regions of an image raise the score of a class, computed by Captum."""

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, require
from ..models import stages_of
from .hooks import evaluating

__all__ = ["grad_cam"]


def last_stage(model: nn.Module) -> nn.Module:
    """The module whose output is the last feature map, by timm's `feature_info`.

    Raises:
        InputError: If the network has none.
    """
    stages = stages_of(model)
    if not stages:
        raise InputError(f"{type(model).__name__} has no feature_info: give layer, the module that gives the map")
    return model.get_submodule(stages[-1]["module"])


def grad_cam(
    model: nn.Module, image: Tensor, target: int | None = None, *, layer: nn.Module | None = None
) -> np.ndarray:
    """Grad-CAM of the last feature map (Selvaraju et al., arXiv 1610.02391).

    Modes, gradients and hooks of the network stay as they are.

    Args:
        model: The network, fused or not.
        image: `(1, in_chans, H, W)`, preprocessed.
        target: Index of the class; the predicted one if None.
        layer: Module with the output `(1, C, h, w)` to use; the last stage if None.

    Returns:
        `(H, W)` in [0, 1], relative to the largest value; all 0 if no region raises the score.

    Raises:
        InputError: If `captum` is not installed, there is no such class, or the output of `layer` is no feature map.
    """
    require(("captum",), "inspect", "Grad-CAM")
    from captum.attr import LayerAttribution, LayerGradCam

    module = last_stage(model) if layer is None else layer
    classes = getattr(model, "num_classes", None)
    if target is not None and classes is not None and not 0 <= target < classes:
        raise InputError(f"class {target}: the network has classes 0 to {classes - 1}")
    like = next(model.parameters(), image)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        # Pixels that require a gradient give every map one, also in frozen and fused networks.
        pixels = image.detach().clone().to(like.device, like.dtype).requires_grad_()
        if target is None:
            target = int(model(pixels).argmax())
        try:
            cam = LayerGradCam(model, module).attribute(pixels, target, relu_attributions=True)
        except AssertionError as error:  # raised by Captum for a layer that the forward pass does not reach
            raise InputError(f"Grad-CAM: the forward pass does not use this {type(module).__name__}") from error
    if not isinstance(cam, Tensor) or cam.dim() != 4:
        raise InputError(f"Grad-CAM needs a feature map (1, C, h, w); {type(module).__name__} gives none")
    cam = LayerAttribution.interpolate(cam.detach().float(), image.shape[-2:], "bilinear")[0, 0]
    return (cam / cam.max().clamp_min(torch.finfo(cam.dtype).tiny)).cpu().numpy()
