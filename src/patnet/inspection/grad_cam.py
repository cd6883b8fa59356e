"""Grad-CAM: which regions of an image raise the score of a class, computed by Captum."""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, require
from ..models import stages_of
from .hooks import evaluating


def grad_cam(model: nn.Module, image: Tensor, target: int | None = None) -> np.ndarray:
    """Grad-CAM of the last feature map (Selvaraju et al., arXiv 1610.02391), found by timm's `feature_info`.

    Modes, gradients and hooks of the network stay as they are.

    Args:
        model: The network, fused or not.
        image: `(1, in_chans, H, W)`, preprocessed.
        target: Index of the class; the predicted one if None.

    Returns:
        `(H, W)` in [0, 1], relative to the largest value; all 0 if no region raises the score.

    Raises:
        InputError: If `captum` is not installed, `image` is not one image, there is no such class, or the network has
            no feature map.
    """
    require(("captum",), "inspect", "Grad-CAM")
    from captum.attr import LayerAttribution, LayerGradCam

    if image.dim() != 4 or len(image) != 1:
        raise InputError(f"Grad-CAM takes one image (1, in_chans, H, W), not {tuple(image.shape)}")
    stages, classes = stages_of(model), getattr(model, "num_classes", None)
    if not stages:
        raise InputError(f"{type(model).__name__} has no feature_info, which names the feature map of Grad-CAM")
    if target is not None and classes is not None and not 0 <= target < classes:
        raise InputError(f"class {target}: the network has classes 0 to {classes - 1}")
    name = stages[-1]["module"]
    if name not in dict(model.named_modules()):
        raise InputError(f"{type(model).__name__} has no module {name!r}, whose feature map timm names for Grad-CAM")
    like = next(model.parameters(), image)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        # Pixels that require a gradient give every map one, also in frozen and fused networks.
        pixels = image.detach().clone().to(like.device, like.dtype).requires_grad_()
        if target is None:
            target = int(model(pixels).argmax())
        last = maps = model.get_submodule(name)
        with ExitStack() as stack:
            if getattr(model, "output_fmt", "NCHW") == "NHWC":  # as timm's Swin says, where Captum takes NCHW
                maps = nn.Identity()
                hook = last.register_forward_hook(lambda *a: maps(a[-1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
                stack.callback(hook.remove)
            cam = LayerGradCam(model, maps).attribute(pixels, target, relu_attributions=True)
    if not isinstance(cam, Tensor) or cam.dim() != 4:
        raise InputError(f"Grad-CAM needs a feature map (1, C, h, w); {type(last).__name__} gives none")
    cam = LayerAttribution.interpolate(cam.detach().float(), image.shape[-2:], "bilinear")[0, 0]
    return (cam / cam.max().clamp_min(torch.finfo(cam.dtype).tiny)).cpu().numpy()
