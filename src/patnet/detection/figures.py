"""Evaluations of detectors, drawn: precision over recall, the best and the worst pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torchvision.ops import box_iou

from ..data.annotations import AnnotatedPicture, Annotations
from ..data.detection import read_as_annotated
from ..data.figures import class_color, mark_objects
from ..data.masks import decode_mask
from ..errors import InputError

__all__ = ["draw_best_and_worst", "draw_precision_recall", "picture_f1"]

RED = "#c1121f"
# Bold lines: the curve, the figure it belongs to, how it is called, and its dashes.
LINES = (
    ("50", "AP50", "IoU .50", "-"),
    ("75", "AP75", "IoU .75", "--"),
    ("mean", "AP", "mean over IoU .50:.95", ":"),
)
CONFIDENT, OVERLAP = 0.5, 0.5


def draw_precision_recall(evaluated: Mapping[str, Any], class_names: Sequence[str], title: str) -> Figure:
    """Precision over recall, boxes and masks side by side.

    In the mean over the classes as bold lines, with the average precision, the area below; for at most ten classes each
    one's curve at an IoU of .50 as a thin line.

    Args:
        evaluated: As `evaluate_results` gives it.
        class_names: In the order of the labels.
        title: Above the curves.
    """
    figure = Figure(figsize=(max(1, len(evaluated)) * 6.2, 6.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(evaluated)), squeeze=False)[0]
    for axes, (kind, figures) in zip(panels, evaluated.items(), strict=False):
        curves = figures["curves"]
        for key, of, said, dashes in LINES:
            there = curves[key][np.isfinite(curves[key]).all(axis=1)]
            if len(there):
                label = f"{said}: {of} {100 * figures[of]:.1f} %"
                axes.plot(curves["recall"], there.mean(axis=0), color="black", ls=dashes, lw=2.4, label=label)
        if 1 < len(curves["50"]) <= 10:
            for number, (name, curve) in enumerate(zip(class_names, curves["50"], strict=True), start=1):
                if np.isfinite(curve).all():
                    label = f"{name}, IoU .50: AP50 {100 * curve.mean():.1f} %"
                    axes.plot(curves["recall"], curve, color=class_color(number), lw=1.2, label=label)
        if figures["AP"] is None:
            axes.text(0.5, 0.5, "no objects to find", ha="center", va="center", color="0.5")
        else:
            axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2)
        axes.set(title={"box": "Boxes", "mask": "Masks"}[kind], xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure


def picture_f1(picture: AnnotatedPicture, results: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """F1 of the results with a score of at least 0.5 in a picture, and the number of mistakes.

    From the highest score on, a result finds the object of its category that its box overlaps most, by an IoU of at
    least 0.5, if nothing has found that yet. What lies in a crowd region of its category does not count. A picture in
    which there is nothing to find and nothing was found has an F1 of 1.
    """
    sure = sorted((r for r in results if r["score"] >= CONFIDENT), key=lambda r: -r["score"])
    single = [o for o in picture.objects if not o.crowd]
    crowds = [o for o in picture.objects if o.crowd]
    boxes = _corners(sure)
    overlaps = box_iou(boxes, _tensor([o.box for o in single]))
    sides = boxes[:, 2:] - boxes[:, :2]
    found: set[int] = set()
    wrong = 0
    for i, result in enumerate(sure):
        free = [
            k
            for k, o in enumerate(single)
            if k not in found and o.category == result["category_id"] and overlaps[i, k] >= OVERLAP
        ]
        if free:
            found.add(max(free, key=lambda k: float(overlaps[i, k])))
            continue
        same = _tensor([o.box for o in crowds if o.category == result["category_id"]])
        inside = (torch.minimum(boxes[i, 2:], same[:, 2:]) - torch.maximum(boxes[i, :2], same[:, :2])).clamp(min=0)
        wrong += not (inside.prod(1) >= OVERLAP * sides[i].prod()).any()
    missed = len(single) - len(found)
    if not single and not wrong:
        return 1.0, 0
    return 2 * len(found) / (2 * len(found) + wrong + missed), wrong + missed


def _tensor(boxes: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def _corners(results: Sequence[Mapping[str, Any]]) -> Tensor:
    """Boxes of results as x1, y1, x2, y2."""
    boxes = _tensor([result["bbox"] for result in results])
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def draw_best_and_worst(annotations: Annotations, results: Sequence[Mapping[str, Any]], count: int = 4) -> Figure:
    """The best pictures on the left and the worst ones on the right, each with the truth beside the prediction.

    They are ranked by `picture_f1`; of equals, the best ones have fewer mistakes, then more objects, and the worst ones
    more mistakes. Pictures with nothing to find in which nothing was found are not drawn.

    Args:
        annotations: The truth.
        results: As `results_of` gives them; those with a score of at least 0.5 are drawn.
        count: How many of each at most; no picture is drawn twice.
    """
    found: dict[int, list[Mapping[str, Any]]] = {picture.id: [] for picture in annotations.pictures}
    for result in results:
        if result["score"] >= CONFIDENT:
            found[result["image_id"]].append(result)
    scored = [(picture, *picture_f1(picture, found[picture.id])) for picture in annotations.pictures]
    scored = [one for one in scored if one[0].objects or found[one[0].id]]
    best = sorted(scored, key=lambda one: (-one[1], one[2], -len(one[0].objects)))[: min(count, -(-len(scored) // 2))]
    chosen = {one[0].id for one in best}
    others = [one for one in scored if one[0].id not in chosen]
    worst = sorted(others, key=lambda one: (one[1], -one[2]))[:count]

    rows = max(1, len(best))
    figure = Figure(figsize=(14.4, 3.4 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    shown: set[int] = set()
    for axes in grid.ravel():
        axes.axis("off")
    for column, name, ranked in ((0, "best", best), (2, "worst", worst)):
        for row, (picture, f1, mistakes) in enumerate(ranked):
            said = (
                f"{name} {row + 1}: {picture.path.name}, F1 {f1:.2f}, {mistakes} mistake{'' if mistakes == 1 else 's'}"
            )
            panels = grid[row, column], grid[row, column + 1]
            shown |= _draw_pair(panels, annotations, picture, found[picture.id], said)
    names = [(k, annotations.class_names[k - 1]) for k in sorted(shown)[:20]]
    if names:
        patches = [Patch(color=class_color(k), label=name) for k, name in names]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(names)), frameon=False, fontsize=9)
    figure.suptitle(
        f"The {len(best)} best and {len(worst)} worst of {len(annotations.pictures)} pictures, by the F1 of detections "
        f"with a score of at least {CONFIDENT:g}\n(their box overlaps one of the same class by an IoU of at least "
        f"{OVERLAP:g}; crowd regions, in dashes, do not count)",
        fontsize=11,
    )
    return figure


def _draw_pair(
    panels: tuple[Axes, Axes],
    annotations: Annotations,
    picture: AnnotatedPicture,
    results: Sequence[Mapping[str, Any]],
    title: str,
) -> set[int]:
    """Truth and prediction of a picture; gives the labels that are drawn."""
    truth, prediction = panels
    label_of = {number: label for label, number in enumerate(annotations.categories, start=1)}
    try:
        image = read_as_annotated(picture)
    except InputError:
        truth.set_title(f"{picture.path.name}: cannot be read", fontsize=8, pad=3, color=RED)
        return set()
    size = (picture.height, picture.width)
    labels = [label_of[o.category] for o in picture.objects]
    mark_objects(
        truth,
        image,
        [o.box for o in picture.objects],
        labels,
        masks=[None if o.segmentation is None else decode_mask(o.segmentation, *size) for o in picture.objects],
        dashed=[o.crowd for o in picture.objects],
    )
    truth.set_title(f"{title}\ntruth, {len(labels)} object{'' if len(labels) == 1 else 's'}", fontsize=8, pad=3)
    guessed = [label_of[result["category_id"]] for result in results]
    mark_objects(
        prediction,
        image,
        _corners(results).tolist(),
        guessed,
        masks=[decode_mask(r["segmentation"], *size) if "segmentation" in r else None for r in results],
        captions=[f"{result['score']:.2f}" for result in results] if len(results) <= 40 else None,
    )
    prediction.set_title(f"prediction, {len(guessed)} found", fontsize=8, pad=3)
    return {*labels, *guessed}
