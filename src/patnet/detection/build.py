"""Detectors by name: torchvision's, over any network of ours or timm's."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from ..errors import InputError, nearest
from ..nn.table import look_up
from .backbone import STRIDES, Backbone, Norm, brightness, feature_network, in_chans
from .retinanet import RetinaNet

__all__ = ["DETECTORS", "Detector", "build"]


class Detector(NamedTuple):
    """An entry of `DETECTORS`.

    Attributes:
        network: The class; called with the backbone, the classes as it counts them, and what `defaults` gives.
        levels: How many of the backbone's levels its pyramid takes, counted from the last.
        extra: The pyramid's further levels, from the channels of the backbone's last level and the pyramid's width.
        background: How many outputs it has beyond the classes.
        losses: Names of the losses that it gives in training mode.
        defaults: Arguments in which the configuration differs from torchvision's own; made anew for each network.
    """

    network: Callable[..., nn.Module]
    levels: int
    extra: Callable[[int, int], ExtraFPNBlock]
    background: int
    losses: tuple[str, ...]
    defaults: Callable[[], dict[str, Any]]


def _pool(output_size: int) -> MultiScaleRoIAlign:
    """Pooling of regions over the four levels, with as many samples as a region's size asks for."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(STRIDES))], output_size, sampling_ratio=0)
    # torchvision would read the strides off its first picture, wrongly where that is padded to nearly twice its
    # height, and keep them.
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = LevelMapper(2, 5)
    return pool


def _faster_rcnn() -> dict[str, Any]:
    return {"rpn_post_nms_top_n_train": 1000, "box_roi_pool": _pool(7)}


def _mask_rcnn() -> dict[str, Any]:
    return {**_faster_rcnn(), "mask_roi_pool": _pool(14)}


def _p6_p7(channels: int, width: int) -> LastLevelP6P7:
    """The two further levels, from the backbone's last; torchvision takes the pyramid's where both are as wide."""
    extra = LastLevelP6P7(channels, width)
    extra.use_P5 = False
    return extra


_OF_BOXES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")

DETECTORS: dict[str, Detector] = {
    "mask_rcnn": Detector(
        detection.MaskRCNN, 4, lambda *_: LastLevelMaxPool(), 1, (*_OF_BOXES, "loss_mask"), _mask_rcnn
    ),
    "faster_rcnn": Detector(detection.FasterRCNN, 4, lambda *_: LastLevelMaxPool(), 1, _OF_BOXES, _faster_rcnn),
    "retinanet": Detector(
        RetinaNet, 3, _p6_p7, 0, ("classification", "bbox_regression"), lambda: {"detections_per_img": 100}
    ),
}


def build(
    detector: str,
    *,
    backbone: str = "patnet_s",
    num_classes: int,
    weights: str | os.PathLike | None = None,
    norm: Norm | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    width: int = 256,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **kwargs: Any,
) -> nn.Module:
    """A detector over a backbone's feature pyramid, with the anchors, heads and thresholds that COCO is trained with.

    They are those of mmdetection's Mask R-CNN, Faster R-CNN and RetinaNet with ResNet-50, from which the authors'
    configuration derives: anchors of 32 to 512 px at strides 4 to 64 (RetinaNet: 8 to 128, with three scales per
    octave) and ratios 0.5, 1 and 2. What torchvision has no argument for stays as it is there: smooth L1 in place of
    L1 as the R-CNNs' losses of boxes, anchors rounded to whole px, and pooled regions not shifted by half a pixel.

    The network takes a list of pictures `(C, H, W)` in [0, 1], of any sizes, and resizes and normalises them itself;
    grey ones of one channel are taken for colour where the backbone takes that. In training mode it takes targets too,
    a dictionary for each picture with `boxes` `(n, 4)` as x1, y1, x2, y2 in px, `labels` `(n,)` and, for Mask R-CNN,
    `masks` `(n, H, W)`, and gives a dictionary of losses. In evaluation mode it gives a dictionary for each picture
    with `boxes`, `labels`, `scores` and, for Mask R-CNN, `masks` `(n, 1, H, W)` in [0, 1], best first. Labels run from
    1 to `num_classes` for each detector; 0 is nobody's. What it was built with stands in its `build_args`, without the
    weights.

    Args:
        detector: A name in `DETECTORS`.
        backbone: Name of the network, one of ours or any of timm's with feature levels of strides 4, 8, 16 and 32.
        num_classes: Classes of objects, the background not counted.
        weights: Checkpoint of a classifier for the backbone, see `patnet.load_weights`; None for random weights. The
            mean and deviation that pictures are normalised with come from it too, if it says them.
        norm: `"frozen"` keeps the backbone's norms as they are, `"train"` trains them. With one or two pictures at
            once their statistics are those of one or two pictures, so that frozen ones are right there; random ones
            have nothing to keep. None freezes those of a backbone that starts from weights. The norms of the stage
            outputs, which are new in a detector, are trained in either case.
        backbone_args: Arguments of the backbone, such as `drop_path_rate`, or `pretrained` for timm's own weights.
        width: Channels of the pyramid and of the heads' convolutions. The box head's layers have four times as many.
            256 as in the configuration; 64 takes a tenth of the time, for small pictures and data sets.
        min_size: Shorter side to which pictures are resized, in px. Of several, training draws one for each picture,
            and evaluation takes the last.
        max_size: Longest side that this may lead to, in px.
        **kwargs: Further arguments of torchvision's class, such as `box_score_thresh`.

    Raises:
        InputError: If the backbone or its weights cannot be used.
        ValueError: If there is no such detector, norm or argument, or no class.
    """
    entry = look_up(DETECTORS, detector, "detector")
    if norm not in ("frozen", "train", None):
        raise ValueError(f"unknown norm {norm!r}: choose frozen or train")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes is {num_classes!r}: give the number of classes of objects, at least 1")
    if isinstance(width, bool) or not isinstance(width, int) or width < 8:
        raise ValueError(f"width is {width!r}: give the number of channels, at least 8")
    known = [*inspect.signature(entry.network).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters]
    for key in kwargs:  # torchvision drops what it does not know
        if key not in known:
            raise ValueError(f"{detector} takes no argument {key!r}{nearest(key, known)}")
    body: Any = feature_network(backbone, entry.levels, weights, backbone_args)
    options = {**entry.defaults(), **brightness(body), **kwargs}
    for key in ("image_mean", "image_std"):
        if len(options[key]) != in_chans(body):
            raise InputError(
                f"{key} has {len(options[key])} values and backbone {backbone} takes pictures of {in_chans(body)} "
                "channels: give one value for each"
            )
    if norm is None:
        norm = "frozen" if weights is not None or (backbone_args or {}).get("pretrained") else "train"
    extra = entry.extra(body.feature_info.channels()[-1], width)
    network: Any = entry.network(
        Backbone(body, extra, norm, width),
        num_classes + entry.background,
        min_size=min_size if isinstance(min_size, int) else tuple(min_size),
        max_size=max_size,
        **options,
    )
    if width != 256 and entry.background:
        _resize_heads(network, width, num_classes + entry.background, kwargs)
    network.build_args = {
        "detector": detector,
        "backbone": backbone,
        "num_classes": num_classes,
        "norm": norm,
        "backbone_args": {key: value for key, value in body.model_args.items() if key != "pretrained"},
        "width": width,
        "min_size": min_size,
        "max_size": max_size,
        **{key: options[key] for key in ("image_mean", "image_std", *kwargs)},
    }
    return network


def _resize_heads(network: Any, width: int, classes: int, given: Mapping[str, Any]) -> None:
    """Give an R-CNN heads of another width, for torchvision's own are of one; those that are given stay."""
    heads = network.roi_heads
    if not {"box_head", "box_predictor"} & given.keys():
        side = heads.box_roi_pool.output_size[0]
        heads.box_head = TwoMLPHead(width * side**2, 4 * width)
        heads.box_predictor = FastRCNNPredictor(4 * width, classes)
    if heads.has_mask() and not {"mask_head", "mask_predictor"} & given.keys():
        heads.mask_head = MaskRCNNHeads(width, (width,) * 4, 1)
        heads.mask_predictor = MaskRCNNPredictor(width, width, classes)
