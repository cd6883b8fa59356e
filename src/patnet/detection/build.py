"""Detectors by name: torchvision's Mask R-CNN, Faster R-CNN and RetinaNet over any backbone of patnet or timm."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from ..errors import nearest
from .backbone import STRIDES, Backbone, Norm, feature_network, normalization


class RetinaNet(detection.RetinaNet):
    """torchvision's RetinaNet with labels from 1, as its R-CNNs have them, and no output for a background."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Losses by name, as torchvision's; it would take label 0 for the last class."""
        labels = torch.cat([target["labels"] for target in targets])
        classes = self.head.classification_head.num_classes
        if ((labels < 1) | (labels > classes)).any():
            raise ValueError(f"a label is {labels.min()} or {labels.max()}: labels must lie in 1 to {classes}")
        from_zero = [{**target, "labels": target["labels"] - 1} for target in targets]
        # The focal loss takes 1 - p, which bfloat16 rounds to multiples of 0.004.
        outputs = {name: found.to(anchors[0].dtype) for name, found in head_outputs.items()}
        return super().compute_loss(from_zero, outputs, anchors)

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each image, as torchvision's."""
        dtype = anchors[0][0].dtype
        outputs = {name: [level.to(dtype) for level in levels] for name, levels in head_outputs.items()}
        detections = super().postprocess_detections(outputs, anchors, image_shapes)
        return [{**found, "labels": found["labels"] + 1} for found in detections]


class _BoxCoder(BoxCoder):
    """torchvision's, in the dtype of the boxes: it rounds them to that of the codes, bfloat16 under autocast."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return super().decode_single(rel_codes.to(boxes.dtype), boxes)


class _Resize(GeneralizedRCNNTransform):
    """torchvision's, with at least 1 px for the shorter side of a very thin image, which it resizes to nothing."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = self.max_size / max(height, width)
        if self.fixed_size is not None or min(height, width) * scale >= 1:
            return super().resize(image, target)
        size = (max(1, int(width * scale)), max(1, int(height * scale)))
        fixed = GeneralizedRCNNTransform(self.min_size, self.max_size, [], [], fixed_size=size)
        return fixed.train(self.training).resize(image, target)


class _RegionPool(MultiScaleRoIAlign):
    """RoIAlign over the four levels, with as many samples as a region's size needs.

    The strides are given: torchvision computes them from its first image, wrongly where that is padded to nearly twice
    its height, and keeps them.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__([str(level) for level in range(len(STRIDES))], output_size, sampling_ratio=0)
        self.scales = [1 / stride for stride in STRIDES]
        self.map_levels = LevelMapper(2, 5)


class _P6P7(LastLevelP6P7):
    """Two further levels from the backbone's last one; torchvision uses the pyramid's where both have one width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)
        self.use_P5 = False


class Detector(NamedTuple):
    """An entry of `DETECTORS`."""

    network: Callable[..., nn.Module]  # called with the backbone, the number of outputs, and further arguments
    levels: int  # of the backbone that the pyramid takes, counted from the last
    extra: Callable[[int, int], ExtraFPNBlock]  # from the channels of the last level and the width of the pyramid
    background: int  # number of outputs beyond the classes
    losses: tuple[str, ...]  # that it gives in training mode
    defaults: Callable[[], dict[str, Any]]  # makes the arguments in which the configuration differs from torchvision's


def _rcnn(network: Callable[..., nn.Module], losses: tuple[str, ...] = (), **pools: int) -> Detector:
    box_losses = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

    def defaults() -> dict[str, Any]:
        return {"rpn_post_nms_top_n_train": 1000, **{name: _RegionPool(size) for name, size in pools.items()}}

    return Detector(network, 4, lambda *_: LastLevelMaxPool(), 1, (*box_losses, *losses), defaults)


DETECTORS: dict[str, Detector] = {
    "mask_rcnn": _rcnn(detection.MaskRCNN, ("loss_mask",), box_roi_pool=7, mask_roi_pool=14),
    "faster_rcnn": _rcnn(detection.FasterRCNN, box_roi_pool=7),
    "retinanet": Detector(
        RetinaNet, 3, _P6P7, 0, ("classification", "bbox_regression"), lambda: {"detections_per_img": 100}
    ),
}


def build(
    detector: str,
    *,
    backbone: str = "patnet_s",
    num_classes: int,
    weights: str | os.PathLike | None = None,
    norm: Norm | None = None,
    backbone_kwargs: Mapping[str, Any] | None = None,
    width: int = 256,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **kwargs: Any,
) -> nn.Module:
    """A detector over a backbone's feature pyramid, with the configuration that `patnet.detection` describes.

    The model takes a list of images `(C, H, W)` in [0, 1], of any sizes, and resizes and normalises them itself. In
    training mode it takes a target for each image too, with `boxes` `(n, 4)` as x1, y1, x2, y2 in px, `labels` `(n,)`
    and, for Mask R-CNN, `masks` `(n, H, W)`, and gives a dictionary of losses. In evaluation mode it gives a dictionary
    for each image, with `boxes`, `labels`, `scores` and, for Mask R-CNN, `masks` `(n, 1, H, W)` in [0, 1], best first.
    Labels run from 1 to `num_classes`. The attribute `build_args` holds the arguments that build it, without weights.

    Args:
        backbone: Name of a model of patnet or timm with feature levels of strides 4, 8, 16 and 32.
        num_classes: Without the background.
        weights: Checkpoint of a classifier for the backbone, and for mean and std, see `patnet.load_weights`.
        norm: `"frozen"` keeps the backbone's norms as they are, since small batches give poor statistics; `"train"`
            trains them. None freezes those of pretrained backbones.
        backbone_kwargs: Arguments of the backbone, such as `drop_path_rate`, or `pretrained` for timm's own weights.
        width: Channels of the pyramid and of the heads, 256 as on COCO; 64 takes a tenth of the time.
        min_size: Shorter side of the resized images in px; of several, training draws one, evaluation takes the last.
        max_size: Upper limit of the longer side, in px.
        **kwargs: Further arguments of torchvision's class, such as `box_score_thresh`.

    Raises:
        InputError: If the backbone or its weights cannot be used.
        ValueError: If there is no such detector in `DETECTORS`, norm or argument, or no class.
    """
    _check_arguments(detector, num_classes, norm, width, kwargs)
    entry = DETECTORS[detector]
    body, backbone_args = feature_network(backbone, entry.levels, weights, backbone_kwargs)
    options = {**entry.defaults(), **kwargs, **normalization(body, kwargs)}
    options |= {"min_size": min_size if isinstance(min_size, int) else tuple(min_size), "max_size": max_size}
    norm = norm or ("frozen" if weights is not None or backbone_args.get("pretrained") else "train")
    extra = entry.extra(body.feature_info.channels()[-1], width)
    outputs = num_classes + entry.background
    model: Any = entry.network(Backbone(body, extra, norm, width), outputs, **options)
    if width != 256 and entry.background:
        _set_head_width(model.roi_heads, width, outputs, kwargs)
    for module in model.modules():
        if type(getattr(module, "box_coder", None)) is BoxCoder:
            module.box_coder = _BoxCoder(module.box_coder.weights)
    given = model.transform
    model.transform = _Resize(
        given.min_size, given.max_size, given.image_mean, given.image_std, given.size_divisible, given.fixed_size
    )
    model.build_args = {
        "detector": detector,
        "backbone": backbone,
        "num_classes": num_classes,
        "norm": norm,
        "backbone_kwargs": {key: value for key, value in backbone_args.items() if key != "pretrained"},
        "width": width,
        "min_size": min_size,
        "max_size": max_size,
        **{key: options[key] for key in ("image_mean", "image_std", *kwargs)},
    }
    return model


def _check_arguments(detector: str, num_classes: Any, norm: Any, width: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what torchvision would ignore or fail on late."""
    if detector not in DETECTORS:
        raise ValueError(
            f"unknown detector {detector!r}{nearest(detector, DETECTORS)}: choose from {', '.join(DETECTORS)}"
        )
    if norm not in ("frozen", "train", None):
        raise ValueError(f"unknown norm {norm!r}: choose frozen or train")
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}: give the number of classes, at least 1")
    if type(width) is not int or width < 8:
        raise ValueError(f"width is {width!r}: give the number of channels, at least 8")
    classes = (DETECTORS[detector].network, GeneralizedRCNNTransform)
    known = [name for part in classes for name in inspect.signature(part).parameters]
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{detector} takes no argument {key!r}{nearest(key, known)}")


def _set_head_width(heads: Any, width: int, outputs: int, given: Mapping[str, Any]) -> None:
    """Replace an R-CNN's heads, which torchvision makes 256 wide, except those that were given as arguments."""
    if not {"box_head", "box_predictor"} & given.keys():
        side = heads.box_roi_pool.output_size[0]
        heads.box_head = TwoMLPHead(width * side**2, 4 * width)
        heads.box_predictor = FastRCNNPredictor(4 * width, outputs)
    if heads.has_mask() and not {"mask_head", "mask_predictor"} & given.keys():
        heads.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
        heads.mask_predictor = MaskRCNNPredictor(width, width, outputs)
