"""A detector for one image of a fixed size, in a form that `torch.export` can follow.

torchvision's detectors choose boxes with Python control flow that it cannot follow. (The TorchScript exporter can, but
it is deprecated, and ONNX Runtime takes two to five times as long with the file that it writes.) Here the sizes of
maps, images and anchors are constants; only the numbers of boxes depend on the image. The networks, anchors, box coders
and thresholds are the detector's own.
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

# Of the form with as many rows for each image: candidates, and rounds of their suppression.
CANDIDATES, ROUNDS = 1000, 20

Found = tuple[Tensor, Tensor, Tensor]  # boxes, labels, scores


class SingleImage(nn.Module):
    """The detections of one image, as tensors.

    Shapes: an image `(C, H, W)` in [0, 1] to boxes `(n, 4)` in px, labels `(n,)`, scores `(n,)` and, with Mask R-CNN,
    masks `(n, 1, H, W)` in [0, 1], best first. The attribute `outputs` holds their names.

    Args:
        detector: Made by `build`, in evaluation mode.
        size: H and W.
        fixed: Give as many rows for each image, those that are no detections with a score of 0, for runtimes without
            shapes that depend on values. RetinaNet alone: the regions of an R-CNN differ in size, as do their samples.

    Raises:
        InputError: If it is not a detector of `build`, or not RetinaNet with `fixed`.
    """

    mean: Tensor
    std: Tensor
    anchors: Tensor

    def __init__(self, detector: Any, size: tuple[int, int], fixed: bool = False) -> None:
        super().__init__()
        detect: Callable[[dict[str, Tensor]], Found]
        if isinstance(detector, detection.FasterRCNN) and fixed:
            raise InputError(
                "an R-CNN needs RoIAlign and as many regions as the image has, which ExecuTorch does not offer; "
                "export it as .onnx or .xml, or train --detector retinanet"
            )
        if isinstance(detector, detection.FasterRCNN):
            detect, generator = self._rcnn, detector.rpn.anchor_generator
        elif isinstance(detector, detection.RetinaNet):
            detect, generator = self._fixed_retinanet if fixed else self._retinanet, detector.anchor_generator
        else:
            raise InputError(f"a {type(detector).__name__} cannot be exported, only the detectors of patnet.detection")
        self.detect, self.size = detect, size
        self.detector: Any = detector
        self.masks = isinstance(detector, detection.MaskRCNN)
        self.outputs = ["boxes", "labels", "scores", *(["masks"] if self.masks else [])]
        mean, std = detector.transform.image_mean, detector.transform.image_std
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        with torch.no_grad():
            images, _ = detector.transform([torch.zeros(len(mean), *size)])
            levels = list(detector.backbone(images.tensors).values())
            self.resized: tuple[int, int] = images.image_sizes[0]
            self.padded: tuple[int, int] = tuple(images.tensors.shape[-2:])
            self.register_buffer("anchors", generator(ImageList(images.tensors, [self.resized]), levels)[0])
        anchors = generator.num_anchors_per_location()
        self.per_level = [x.shape[2] * x.shape[3] * n for x, n in zip(levels, anchors, strict=True)]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The detections, see the class."""
        x = F.interpolate(((image - self.mean) / self.std)[None], self.resized, mode="bilinear", align_corners=False)
        x = F.pad(x, (0, self.padded[1] - self.resized[1], 0, self.padded[0] - self.resized[0]))
        features = self.detector.backbone(x)
        boxes, labels, scores = self.detect(features)
        scale = [self.size[1] / self.resized[1], self.size[0] / self.resized[0]] * 2
        in_image = boxes * boxes.new_tensor(scale)
        if not self.masks:
            return in_image, labels, scores
        heads = self.detector.roi_heads
        pooled = _pool(heads.mask_roi_pool, features, boxes)
        of_classes = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
        index = labels.view(-1, 1, 1, 1).expand(-1, 1, *of_classes.shape[2:])
        return in_image, labels, scores, paste_masks(of_classes.gather(1, index), in_image, self.size)

    def _rcnn(self, features: dict[str, Tensor]) -> Found:
        """Faster and Mask R-CNN: classes and boxes of the regions that the first stage proposes."""
        heads = self.detector.roi_heads
        regions = self._proposals(features)
        logits, deltas = heads.box_predictor(heads.box_head(_pool(heads.box_roi_pool, features, regions)))
        classes = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, regions).reshape(-1, classes, 4)
        boxes = clip_boxes_to_image(boxes, self.resized)[:, 1:].reshape(-1, 4)
        scores = logits.softmax(-1)[:, 1:]
        labels = torch.arange(1, classes, device=boxes.device).expand_as(scores).reshape(-1)
        scores = scores.reshape(-1)
        valid = (scores > heads.score_thresh) & _min_side(boxes, 1e-2)
        kept = self._nms(boxes, scores, labels, valid, heads.nms_thresh, heads.detections_per_img)
        return boxes[kept], labels[kept], scores[kept]

    def _proposals(self, features: dict[str, Tensor]) -> Tensor:
        """Regions that may hold an object, `(n, 4)`."""
        rpn = self.detector.rpn
        objectness, deltas = concat_box_prediction_layers(*rpn.head(list(features.values())))
        boxes = clip_boxes_to_image(rpn.box_coder.decode_single(deltas, self.anchors), self.resized)
        best, levels = self._top_of_levels(objectness[:, 0], rpn.pre_nms_top_n(), 1)
        boxes, scores = boxes[best], objectness[:, 0][best].sigmoid()
        valid = (scores >= rpn.score_thresh) & _min_side(boxes, rpn.min_size)
        return boxes[self._nms(boxes, scores, levels, valid, rpn.nms_thresh, rpn.post_nms_top_n())]

    def _retinanet(self, features: dict[str, Tensor]) -> Found:
        """RetinaNet: classes and boxes of all anchors."""
        boxes, labels, scores = self._candidates(features)
        net = self.detector
        kept = self._nms(boxes, scores, labels, scores > net.score_thresh, net.nms_thresh, net.detections_per_img)
        return boxes[kept], labels[kept], scores[kept]

    def _fixed_retinanet(self, features: dict[str, Tensor]) -> Found:
        """The same in as many rows for each image, with non-maximum suppression by products of matrices.

        A candidate is kept if no better one that overlaps it is kept. That is repeated from all candidates on, and
        exact once it changes nothing, after as many rounds as overlaps follow each other.
        """
        boxes, labels, scores = self._candidates(features)
        net = self.detector
        scores, best = scores.topk(min(CANDIDATES, len(scores)))
        boxes, labels = boxes[best], labels[best]
        valid = (scores > net.score_thresh).to(boxes.dtype)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
        sides = (high - low).clamp(min=0)
        both = sides[:, :, 0] * sides[:, :, 1]
        over = (both > net.nms_thresh * (area[:, None] + area - both)).to(boxes.dtype)
        same = (labels[:, None] == labels).to(boxes.dtype)
        suppresses = (over * same * valid[:, None]).triu(1)
        kept = valid
        for _ in range(ROUNDS):
            kept = valid * (1 - (kept @ suppresses).clamp(max=1))
        scores, order = (scores * kept).topk(min(net.detections_per_img, len(scores)))
        return boxes[order], labels[order], scores

    def _candidates(self, features: dict[str, Tensor]) -> Found:
        """RetinaNet's best anchors of each level, with their boxes, labels and scores."""
        net = self.detector
        outputs = net.head(list(features.values()))
        classes = outputs["cls_logits"].shape[2]
        scores = outputs["cls_logits"][0].sigmoid().reshape(-1)
        best, _ = self._top_of_levels(scores, net.topk_candidates, classes)
        anchors = torch.div(best, classes, rounding_mode="floor")
        boxes = net.box_coder.decode_single(outputs["bbox_regression"][0][anchors], self.anchors[anchors])
        return clip_boxes_to_image(boxes, self.resized), best % classes + 1, scores[best]

    def _top_of_levels(self, scores: Tensor, count: int, classes: int) -> tuple[Tensor, Tensor]:
        """Indices of the highest scores of each level, and their levels."""
        best, levels, offset = [], [], 0
        for level, anchors in enumerate(self.per_level):
            size = anchors * classes
            top = scores[offset : offset + size].topk(min(count, size)).indices
            best.append(top + offset)
            levels.append(torch.full_like(top, level))
            offset += size
        return torch.cat(best), torch.cat(levels)

    def _nms(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, thresh: float, count: int) -> Tensor:
        """Indices of the best valid boxes after non-maximum suppression within each group, best first."""
        kept = torch.nonzero(valid)[:, 0]
        offsets = groups[kept].to(boxes.dtype)[:, None] * (max(self.resized) + 1)  # boxes of two groups never overlap
        return kept[nms(boxes[kept] + offsets, scores[kept], thresh)[:count]]


def _pool(pool: Any, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box on the level for its size, `(n, C, side, side)`."""
    maps = [features[name] for name in pool.featmap_names]
    level_of = pool.map_levels([boxes])
    regions = F.pad(boxes, (1, 0))  # all of image 0
    pooled = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], *pool.output_size)
    for level, (x, scale) in enumerate(zip(maps, pool.scales, strict=True)):
        here = torch.nonzero(level_of == level)[:, 0]
        pooled[here] = roi_align(x, regions[here], pool.output_size, scale, pool.sampling_ratio)
    return pooled


def _min_side(boxes: Tensor, least: float) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2] >= least).all(1)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes resized into the image as torchvision's `paste_masks_in_image` does it, without a loop.

    Bilinear resizing multiplies by one matrix from the left and one from the right, whose rows belong to pixels.

    Shapes: `(n, 1, M, M)` and `(n, 4)` to `(n, 1, *size)`.
    """
    masks = F.pad(masks, (1, 1, 1, 1))
    side = masks.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * (side / (side - 2))
    low, high = (centre - half).trunc(), (centre + half).trunc()

    def resize(axis: int, length: int) -> Tensor:
        start, pixels = low[:, axis, None], torch.arange(length, device=boxes.device)
        extent = (high - low + 1).clamp(min=1)[:, axis, None]
        position = ((pixels - start + 0.5) * (side / extent) - 0.5).clamp(0, side - 1)
        weights = (1 - (position[:, :, None] - torch.arange(side, device=boxes.device)).abs()).clamp(min=0)
        inside = (pixels >= start) & (pixels < start + extent)
        return weights * inside[:, :, None]

    return (resize(1, size[0]) @ masks[:, 0] @ resize(0, size[1]).transpose(1, 2))[:, None]
