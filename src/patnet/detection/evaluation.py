"""How good detections are: COCO's average precision and recall, of boxes and of masks."""

import gc
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import nms

from ..data.annotations import Annotations
from ..data.masks import encode_mask
from ..errors import InputError

__all__ = ["FIGURES", "GatheredResults", "evaluate_results", "results_of", "unclassed"]

# In COCO's order.
FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
# What is compared: COCO's name for it, and the field of a result that holds it.
KINDS = {"box": ("bbox", "bbox"), "mask": ("segm", "segmentation")}
DUPLICATE = 0.5  # IoU of two boxes above which the worse one goes where classes do not count


def _library() -> tuple[Any, Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster, mask
    except ModuleNotFoundError as error:
        raise InputError(
            "evaluation: needs faster-coco-eval, not installed here: pip install 'patnet[detection]'"
        ) from error
    return COCO, COCOeval_faster, mask


def results_of(image_id: int, found: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """What a detector finds in a picture as COCO's results, which JSON can hold.

    Args:
        image_id: Of the picture in the annotations.
        found: `boxes` `(n, 4)` as x1, y1, x2, y2 in px, `labels` `(n,)` from 1, `scores` `(n,)` and perhaps `masks`
            `(n, 1, H, W)` in [0, 1], of which what is above 0.5 belongs to the object.
        category_ids: Label `k` stands for `category_ids[k - 1]`.
    """
    boxes = found["boxes"].double()
    corners_and_sides = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).tolist()
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(found["labels"].tolist(), corners_and_sides, found["scores"].tolist(), strict=True)
    ]
    if "masks" in found and results:
        # Run lengths go down the columns, so that these are what should lie side by side.
        columns = (found["masks"][:, 0].transpose(1, 2) > 0.5).contiguous().byte().cpu().numpy()
        for result, mask in zip(results, columns, strict=True):
            result["segmentation"] = encode_mask(mask.T)
    return results


def unclassed(
    annotations: Annotations, results: Sequence[Mapping[str, Any]]
) -> tuple[Annotations, list[dict[str, Any]]]:
    """Truth and results as if all categories were one.

    Of boxes of one picture, whatever their classes, that overlap by an IoU above 0.5, the one of the highest score
    stays (torchvision's `nms`): an object that is found as two classes would else count as a mistake too.
    """
    of_picture = defaultdict(list)
    for result in results:
        of_picture[result["image_id"]].append(result)
    kept = []
    for found in of_picture.values():
        x, y, across, down = torch.tensor([result["bbox"] for result in found], dtype=torch.float64).unbind(1)
        scores = torch.tensor([result["score"] for result in found], dtype=torch.float64)
        best = nms(torch.stack((x, y, x + across, y + down), 1), scores, DUPLICATE)
        kept += [{**found[i], "category_id": 1} for i in best.tolist()]
    pictures = [replace(p, objects=[o._replace(category=1) for o in p.objects]) for p in annotations.pictures]
    return replace(annotations, categories={1: "all classes"}, pictures=pictures), kept


def evaluate_results(
    annotations: Annotations,
    results: Sequence[Mapping[str, Any]],
    *,
    kinds: Sequence[str] = ("box", "mask"),
    class_agnostic: bool = False,
) -> dict[str, dict[str, Any]]:
    """COCO's figures of results, as pycocotools computes them.

    An object is small below 32² px, large above 96²; for masks its area is the mask's, for boxes the box's. At most the
    best 100 results of a class count in a picture.

    Args:
        annotations: The truth.
        results: As `results_of` gives them, of all pictures.
        kinds: What to compare, `"box"` and `"mask"`.
        class_agnostic: Take all categories for one, with what `unclassed` leaves of the results.

    Returns:
        For each kind, with shares in [0, 1] and None where there is nothing to measure:

        - `FIGURES`: AP is the mean over the classes and the IoU thresholds .50, .55 to .95, AP50 and AP75 of one
          threshold each, AR10 the recall that ten results in a picture can reach at most;
        - `per_class`: by class name, AP, AP50 and the number of `objects`, crowd regions left out;
        - `curves`: `recall` `(101,)`, and `50`, `75` and `mean` `(classes, 101)`, the precision at each recall for the
          IoU of .50, of .75, and in the mean over all; NaN for a class without objects.

    Raises:
        InputError: If results are of other pictures or categories, or masks are missing.
        ValueError: If there is no such kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"no kind {unknown.pop()!r}: choose from {', '.join(KINDS)}")
    if "mask" in kinds and not annotations.has_masks:
        raise InputError(f"{annotations.source}: an object has no mask; evaluate boxes alone")
    _check_results(annotations, results, kinds)
    if class_agnostic:
        annotations, results = unclassed(annotations, results)
    truth = annotations.as_coco()
    return {kind: _evaluate_kind(truth, results, *KINDS[kind]) for kind in kinds}


def _check_results(annotations: Annotations, results: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Refuse results that are not of these pictures and categories, or have no masks."""
    for key, known in (("image_id", {p.id for p in annotations.pictures}), ("category_id", annotations.categories)):
        if other := {result[key] for result in results}.difference(known):
            raise InputError(
                f"{annotations.source}: has no {key} {min(other)}, which a result names; give the same data"
            )
    for kind in kinds:
        if any(KINDS[kind][1] not in result for result in results):
            raise InputError(f"{annotations.source}: a result has no {kind}; evaluate other kinds")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leave out Python's search for cycles, which goes through millions of dictionaries again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collection()
def _evaluate_kind(
    truth: dict[str, Any], results: Sequence[Mapping[str, Any]], name: str, field: str
) -> dict[str, Any]:
    """The figures of boxes, or of masks."""
    coco, evaluator, masks = _library()
    values = [result[field] for result in results]
    areas = masks.area(values) if field == "segmentation" and values else [box[2] * box[3] for box in values]
    found = [
        {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "score": result["score"],
            "area": float(area),
            "iscrowd": 0,
            field: value,
        }
        for number, (result, value, area) in enumerate(zip(results, values, areas, strict=True), start=1)
    ]
    evaluation = evaluator(coco(truth), coco({**truth, "annotations": found}), name)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # (IoU, recall, class, area, results): of all areas, with up to 100 results; -1 where a class has no object.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    precision = np.where(precision > -1, precision, np.nan).transpose(0, 2, 1)
    objects = Counter(one["category_id"] for one in truth["annotations"] if not one["iscrowd"])
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    names = Counter(category["name"] for category in categories)
    return {
        **{key: _share(value) for key, value in zip(FIGURES, evaluation.stats, strict=True)},
        "per_class": {
            c["name"] if names[c["name"]] == 1 else f"{c['name']} ({c['id']})": {
                "AP": _share(precision[:, i].mean()),
                "AP50": _share(precision[0, i].mean()),
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


def _share(value: float) -> float | None:
    return float(value) if value >= 0 else None  # NaN is no more than 0 either


class GatheredResults(Metric):
    """COCO's results from all processes.

    A process keeps its own as lines of JSON in tensors of bytes, for torchmetrics gathers nothing but tensors.
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", default=[], dist_reduce_fx="cat")

    def update(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Take results; a caller leaves out those of pictures that only fill up its share."""
        text = "".join(json.dumps(result, separators=(",", ":")) + "\n" for result in results)
        self.lines.append(torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy()).to(self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As torchmetrics has it, whose stand-in for no state at all would not be bytes."""
        if not len(self.lines):
            self.lines.append(torch.empty(0, dtype=torch.uint8, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> list[dict[str, Any]]:
        """The results in the order of the pictures' ids, whichever process they come from."""
        if not len(self.lines):
            return []
        text = dim_zero_cat(self.lines).cpu().numpy().tobytes()
        results = json.loads(b"[" + text.rstrip(b"\n").replace(b"\n", b",") + b"]")
        return sorted(results, key=lambda result: result["image_id"])
