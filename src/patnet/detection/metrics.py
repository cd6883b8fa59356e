"""Metrics of detections: COCO's average precision and recall, of boxes and of masks."""

import gc
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.ops import box_convert, nms

from ..data.annotations import Annotations
from ..data.masks import encode_mask
from ..errors import InputError, require

METRICS = (  # in COCO's order
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# COCO's IoU types, and the field of a result that each compares.
IOU_TYPES = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}
NMS_THRESH = 0.5  # IoU above which the lower-scored of two boxes is removed where classes are merged


def coco_results(image_id: int, found: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """What a detector of `build` finds in an image as COCO's results, which JSON can hold; masks are cut at 0.5."""
    boxes = box_convert(found["boxes"].double(), "xyxy", "xywh").tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(found["labels"].tolist(), boxes, found["scores"].tolist(), strict=True)
    ]
    if "masks" in found and results:
        # Run lengths follow the columns, so these are made contiguous.
        columns = (found["masks"][:, 0].transpose(1, 2) > 0.5).contiguous().byte().cpu().numpy()
        for result, mask in zip(results, columns, strict=True):
            result["segmentation"] = encode_mask(mask.T)
    return results


def gather_results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all processes in the order of the image ids; every process has to call it."""
    if dist.is_available() and dist.is_initialized():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, results)
        results = [result for part in parts for result in part]
    return sorted(results, key=lambda result: result["image_id"])


def merge_classes(
    annotations: Annotations, results: Sequence[Mapping[str, Any]]
) -> tuple[Annotations, list[dict[str, Any]]]:
    """Annotations and results with all classes as one, for class-agnostic evaluation.

    Non-maximum suppression at an IoU of 0.5 removes all but the best of overlapping results: else an object that is
    detected as two classes would also count as an error.
    """
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    kept = []
    for found in by_image.values():
        boxes = torch.tensor([result["bbox"] for result in found], dtype=torch.float64)
        scores = torch.tensor([result["score"] for result in found], dtype=torch.float64)
        best = nms(box_convert(boxes, "xywh", "xyxy"), scores, NMS_THRESH)
        kept += [{**found[i], "category_id": 1} for i in best.tolist()]
    images = [replace(image, objects=[o._replace(category=1) for o in image.objects]) for image in annotations.images]
    return replace(annotations, categories={1: "all classes"}, images=images), kept


def coco_metrics(
    annotations: Annotations, results: Sequence[Mapping[str, Any]], *, masks: bool = True
) -> dict[str, dict[str, Any]]:
    """COCO's metrics of boxes and, with `masks`, of masks, as pycocotools computes them.

    An object is small below 32² px and large above 96²; its area is that of the mask for masks, else of the box. The
    100 best results of a class count in an image. The results are those of `coco_results`, of all images.

    Returns:
        For `box` and `mask`, in [0, 1], with None where there is nothing to measure:

        - `METRICS`: AP is the mean over the classes and the IoU thresholds .50, .55 to .95; AP50 and AP75 are those of
          one threshold; AR10 is the largest recall with ten results in an image;
        - `per_class`: by class name, AP, AP50 and the number of `objects` without crowd regions;
        - `curves`: `recall` `(101,)`, and `50`, `75` and `mean` `(classes, 101)`, the precision at each recall for an
          IoU of .50, of .75, and averaged over all thresholds; NaN for a class without objects.

    Raises:
        InputError: If results are of other images or categories, or masks are missing.
    """
    require(("faster_coco_eval",), "detection", "evaluation of detections")
    if masks and not annotations.has_masks:
        raise InputError(f"{annotations.source}: an object has no mask; evaluate boxes alone")
    for key, known in (("image_id", {i.id for i in annotations.images}), ("category_id", annotations.categories)):
        if other := {result[key] for result in results}.difference(known):
            raise InputError(f"{annotations.source}: has no {key} {min(other)}, which a result has; give the same data")
    if masks and any("segmentation" not in result for result in results):
        raise InputError(f"{annotations.source}: a result has no mask; evaluate boxes alone")
    truth = annotations.as_coco()
    iou_types = ("box", "mask") if masks else ("box",)
    collecting = gc.isenabled()
    gc.disable()  # else it searches millions of dictionaries for cycles again and again, which doubles the time
    try:
        return {iou_type: _evaluate(truth, results, *IOU_TYPES[iou_type]) for iou_type in iou_types}
    finally:
        if collecting:
            gc.enable()


def _evaluate(truth: dict[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str, field: str) -> dict[str, Any]:
    # COCOeval itself, not torchmetrics' MeanAveragePrecision around it: that one drops the image ids and the classes
    # without objects, and takes the masks as dense tensors, the ground truth's too, on every process.
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(truth)
    keys = ("image_id", "category_id", "score", field)
    evaluation = COCOeval_faster(coco, coco.loadRes([{key: r[key] for key in keys} for r in results]), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # (IoU, recall, class, area, results): of all areas, with up to 100 results; -1 where a class has no object.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    precision = np.where(precision > -1, precision, np.nan).transpose(0, 2, 1)
    objects = Counter(one["category_id"] for one in truth["annotations"] if not one["iscrowd"])
    categories = truth["categories"]
    names = Counter(category["name"] for category in categories)
    return {
        **{key: _or_none(value) for key, value in zip(METRICS, evaluation.stats, strict=True)},
        "per_class": {
            c["name"] if names[c["name"]] == 1 else f"{c['name']} ({c['id']})": {
                "AP": _or_none(precision[:, i].mean()),
                "AP50": _or_none(precision[0, i].mean()),
                "objects": objects[c["id"]],
            }
            for i, c in enumerate(categories)
        },
        "curves": {
            "recall": np.asarray(evaluation.params.recThrs),
            "50": precision[0],
            "75": precision[5],
            "mean": precision.mean(0),
        },
    }


def _or_none(value: float) -> float | None:
    return float(value) if value >= 0 else None  # NaN is not at least 0 either
