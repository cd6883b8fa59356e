"""A detector for one picture of a fixed size, in a form that torch.export can follow.

torchvision's detectors decide in Python what to do with the boxes they have found, which no exporter of whole programs
follows. Here the sizes of maps, pictures and anchors are constants, and the only sizes that depend on the picture are
the numbers of boxes. The networks, anchors, box coders and thresholds are those of the detector itself.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from ..errors import InputError

__all__ = ["OnePicture"]

# Boxes with their scores and labels.
Found = tuple[Tensor, Tensor, Tensor]


class OnePicture(nn.Module):
    """What a detector finds in one picture, as tensors.

    Shapes: a picture `(C, H, W)` in [0, 1] to boxes `(n, 4)` in px, labels `(n,)`, scores `(n,)` and, with Mask R-CNN,
    masks `(n, 1, H, W)` in [0, 1], best first.

    Args:
        detector: Made by `build`, in evaluation mode.
        size: H and W.

    Attributes:
        outputs: Their names.

    Raises:
        InputError: If this kind of detector has no such form.
    """

    mean: Tensor
    std: Tensor
    anchors: Tensor

    def __init__(self, detector: Any, size: tuple[int, int]) -> None:
        super().__init__()
        kinds: dict[type, Callable[[dict[str, Tensor]], Found]] = {
            detection.FasterRCNN: self._regions,
            detection.RetinaNet: self._dense,
        }
        found = [find for kind, find in kinds.items() if isinstance(detector, kind)]
        if not found:
            raise InputError(f"a {type(detector).__name__} cannot be exported, only the detectors of patnet.detection")
        self.find = found[0]
        self.detector = detector
        self.size = size
        self.masks = isinstance(detector, detection.MaskRCNN)
        self.outputs = ["boxes", "labels", "scores", *(["masks"] if self.masks else [])]
        mean, std = detector.transform.image_mean, detector.transform.image_std
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.generator = detector.rpn.anchor_generator if hasattr(detector, "rpn") else detector.anchor_generator
        with torch.no_grad():
            detector([torch.zeros(len(mean), *size)])  # poolings of regions learn their strides from a first picture
            pictures, _ = detector.transform([torch.zeros(len(mean), *size)])
            levels = list(detector.backbone(pictures.tensors).values())
            self.resized: tuple[int, int] = pictures.image_sizes[0]
            self.padded: tuple[int, int] = tuple(pictures.tensors.shape[-2:])
            self.register_buffer("anchors", self.generator(ImageList(pictures.tensors, [self.resized]), levels)[0])
        anchors = self.generator.num_anchors_per_location()
        self.per_level = [x.shape[2] * x.shape[3] * n for x, n in zip(levels, anchors, strict=True)]

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """The detections, see the class."""
        features = self.detector.backbone(self._prepare(picture))
        boxes, labels, scores = self.find(features)
        scale = [self.size[0] / self.resized[0], self.size[1] / self.resized[1]]
        in_picture = boxes * boxes.new_tensor([scale[1], scale[0]] * 2)
        if not self.masks:
            return in_picture, labels, scores
        heads = self.detector.roi_heads
        pooled = _pool(heads.mask_roi_pool, features, boxes)
        every = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
        own = labels.view(-1, 1, 1, 1).expand(-1, 1, every.shape[2], every.shape[3])
        return in_picture, labels, scores, paste(every.gather(1, own), in_picture, self.size)

    def _prepare(self, picture: Tensor) -> Tensor:
        """The picture normalised, resized and padded, `(1, C, *padded)`."""
        x = (picture - self.mean) / self.std
        x = F.interpolate(x[None], size=self.resized, mode="bilinear", align_corners=False)
        return F.pad(x, (0, self.padded[1] - self.resized[1], 0, self.padded[0] - self.resized[0]))

    def _best(self, boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, overlap: float, most: int) -> Tensor:
        """Indices of the best usable boxes that overlap no better one of their group, best first."""
        usable = torch.nonzero(usable)[:, 0]
        apart = groups[usable].to(boxes.dtype)[:, None] * (max(self.resized) + 1)  # no two groups overlap there
        return usable[nms(boxes[usable] + apart, scores[usable], overlap)[:most]]

    def _regions(self, features: dict[str, Tensor]) -> Found:
        """What the R-CNNs find: classes and boxes of regions that the first stage proposes."""
        heads = self.detector.roi_heads
        regions = self._proposals(features)
        logits, deltas = heads.box_predictor(heads.box_head(_pool(heads.box_roi_pool, features, regions)))
        classes = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, regions).reshape(-1, classes, 4)
        boxes = clip_boxes_to_image(boxes, self.resized)[:, 1:].reshape(-1, 4)
        scores = logits.softmax(-1)[:, 1:]
        labels = torch.arange(1, classes, device=boxes.device).expand_as(scores).reshape(-1)
        scores = scores.reshape(-1)
        usable = (scores > heads.score_thresh) & _is_wide(boxes, 1e-2)
        kept = self._best(boxes, scores, labels, usable, heads.nms_thresh, heads.detections_per_img)
        return boxes[kept], labels[kept], scores[kept]

    def _proposals(self, features: dict[str, Tensor]) -> Tensor:
        """Regions that may hold an object, `(n, 4)`."""
        rpn = self.detector.rpn
        objectness, deltas = concat_box_prediction_layers(*rpn.head(list(features.values())))
        boxes = clip_boxes_to_image(rpn.box_coder.decode_single(deltas, self.anchors), self.resized)
        best, levels = self._best_of_levels(objectness[:, 0], rpn.pre_nms_top_n(), 1)
        boxes, scores = boxes[best], objectness[:, 0][best].sigmoid()
        usable = (scores >= rpn.score_thresh) & _is_wide(boxes, rpn.min_size)
        return boxes[self._best(boxes, scores, levels, usable, rpn.nms_thresh, rpn.post_nms_top_n())]

    def _best_of_levels(self, scores: Tensor, most: int, classes: int) -> tuple[Tensor, Tensor]:
        """Indices of the highest scores of each level, and their levels."""
        best, levels, offset = [], [], 0
        for level, anchors in enumerate(self.per_level):
            size = anchors * classes
            top = scores[offset : offset + size].topk(min(most, size)).indices
            best.append(top + offset)
            levels.append(torch.full_like(top, level))
            offset += size
        return torch.cat(best), torch.cat(levels)

    def _dense(self, features: dict[str, Tensor]) -> Found:
        """What RetinaNet finds: classes and boxes of all anchors."""
        net = self.detector
        outputs = net.head(list(features.values()))
        classes = outputs["cls_logits"].shape[2]
        scores = outputs["cls_logits"][0].sigmoid().reshape(-1)
        best, _ = self._best_of_levels(scores, net.topk_candidates, classes)
        anchors = torch.div(best, classes, rounding_mode="floor")
        boxes = net.box_coder.decode_single(outputs["bbox_regression"][0][anchors], self.anchors[anchors])
        boxes, scores, labels = clip_boxes_to_image(boxes, self.resized), scores[best], best % classes + 1
        kept = self._best(boxes, scores, labels, scores > net.score_thresh, net.nms_thresh, net.detections_per_img)
        return boxes[kept], labels[kept], scores[kept]


def _pool(pool: Any, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """`(n, C, side, side)` under each box, from the level that its size asks for."""
    maps = [features[name] for name in pool.featmap_names]
    level_of = pool.map_levels([boxes])
    regions = F.pad(boxes, (1, 0))  # all in picture 0
    pooled = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], *pool.output_size)
    for level, (x, scale) in enumerate(zip(maps, pool.scales, strict=True)):
        here = torch.nonzero(level_of == level)[:, 0]
        pooled[here] = roi_align(x, regions[here], pool.output_size, scale, pool.sampling_ratio)
    return pooled


def _is_wide(boxes: Tensor, least: float) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] >= least).all(1)


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes, drawn into the picture as torchvision's `paste_masks_in_image` does, all at once.

    Bilinear resizing is a product with one matrix from the left and one from the right, whose rows belong to pixels.

    Shapes: `(n, 1, M, M)` and `(n, 4)` to `(n, 1, *size)`.
    """
    masks = F.pad(masks, (1, 1, 1, 1))
    side = masks.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * (side / (side - 2))
    low, high = (centre - half).trunc(), (centre + half).trunc()

    def spread(axis: int, length: int) -> Tensor:
        start, pixels = low[:, axis, None], torch.arange(length, device=boxes.device)
        extent = (high - low + 1).clamp(min=1)[:, axis, None]
        place = ((pixels - start + 0.5) * (side / extent) - 0.5).clamp(0, side - 1)
        weights = (1 - (place[:, :, None] - torch.arange(side, device=boxes.device)).abs()).clamp(min=0)
        inside = (pixels >= start) & (pixels < start + extent)
        return weights * inside[:, :, None]

    return (spread(1, size[0]) @ masks[:, 0] @ spread(0, size[1]).transpose(1, 2))[:, None]
