"""Grad-CAM: where a network finds evidence for a class, through Captum."""

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy.format import require
from ..errors import InputError
from ..models.stages import stages_of
from .listening import evaluating

__all__ = ["grad_cam"]


def last_stage(model: nn.Module) -> nn.Module:
    """The module whose output is the last feature map, as timm's networks name it.

    Raises:
        InputError: If the network does not name one.
    """
    stages = stages_of(model)
    if not stages:
        raise InputError(f"{type(model).__name__} does not say where its feature maps are: give layer, a module of it")
    return model.get_submodule(stages[-1]["module"])


def grad_cam(
    model: nn.Module, picture: Tensor, target: int | None = None, *, layer: nn.Module | None = None
) -> np.ndarray:
    """Where the last feature map speaks for a class: Grad-CAM (Selvaraju et al., arXiv 1610.02391).

    Computed by Captum. The network is left as it was: mode, gradients and hooks.

    Args:
        model: The network, fused or not.
        picture: `(1, in_chans, H, W)`, preprocessed.
        target: Number of the class; the likeliest if None.
        layer: Whose output `(1, C, h, w)` is looked at; the last stage's if None.

    Returns:
        `(H, W)` in [0, 1], 1 where most speaks for the class; all 0 if nothing does.

    Raises:
        InputError: If `captum` is not installed, there is no such class, or the output of `layer` is no map.
    """
    require(("captum",), "inspect", "Grad-CAM")
    from captum.attr import LayerAttribution, LayerGradCam

    looked_at = last_stage(model) if layer is None else layer
    classes = getattr(model, "num_classes", None)
    if target is not None and classes is not None and not 0 <= target < classes:
        raise InputError(f"class {target}: the network has classes 0 to {classes - 1}")
    like = next(model.parameters(), picture)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        # Gradients of the picture make those of every map, whatever is frozen or fused.
        pixels = picture.detach().clone().to(like.device, like.dtype).requires_grad_()
        if target is None:
            target = int(model(pixels).argmax())
        try:
            cam = LayerGradCam(model, looked_at).attribute(pixels, target, relu_attributions=True)
        except AssertionError as error:  # how Captum says so
            raise InputError(
                f"Grad-CAM: {type(looked_at).__name__} takes no part in the network's answer; give a layer of it"
            ) from error
    if not isinstance(cam, Tensor) or cam.dim() != 4:
        raise InputError(f"Grad-CAM needs a feature map (1, C, h, w), which {type(looked_at).__name__} does not give")
    cam = LayerAttribution.interpolate(cam.detach().float(), picture.shape[-2:], "bilinear")[0, 0]
    return (cam / cam.max().clamp_min(torch.finfo(cam.dtype).tiny)).cpu().numpy()
