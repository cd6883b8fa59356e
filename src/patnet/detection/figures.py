"""Figures of an evaluation: precision-recall curves, the best and the worst images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torchvision.ops import box_convert, box_iou

from ..data import UnreadableImage
from ..data.annotations import AnnotatedImage, Annotations
from ..data.detection import read_annotated_image
from ..data.figures import class_color, mark_objects
from ..data.masks import decode_mask
from ..train.figures import ERROR, HIT

# Curve, the metric it belongs to, its name, and its dashes.
CURVES = (
    ("50", "AP50", "IoU .50", "-"),
    ("75", "AP75", "IoU .75", "--"),
    ("mean", "AP", "mean of IoU .50:.95", ":"),
)
SCORE_THRESH, IOU_THRESH = 0.5, 0.5
IGNORED = "0.6"  # colour of crowd regions and of results in them
COLORS = {True: HIT, False: ERROR, None: IGNORED}
MAX_CAPTIONS = 16  # in an image


def draw_precision_recall(metrics: Mapping[str, Any], class_names: Sequence[str], title: str) -> Figure:
    """Precision over recall, of boxes and of masks.

    The mean over the classes is in bold, with the area below it, the average precision; for at most ten classes there
    is a thin line for each one at an IoU of .50. The metrics are those of `coco_metrics`.
    """
    figure = Figure(figsize=(4.8 * max(1, len(metrics)), 5.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axes, (iou_type, found) in zip(panels, metrics.items(), strict=False):
        curves = found["curves"]
        for key, metric, name, dashes in CURVES:
            measured = curves[key][np.isfinite(curves[key]).all(axis=1)]
            if len(measured):
                label = f"{name}: {metric} {100 * found[metric]:.1f} %"
                axes.plot(curves["recall"], measured.mean(axis=0), color="black", ls=dashes, lw=2.2, label=label)
        if 1 < len(curves["50"]) <= 10:
            for number, (name, curve) in enumerate(zip(class_names, curves["50"], strict=True), start=1):
                if np.isfinite(curve).all():
                    label = f"{name}: AP50 {100 * curve.mean():.1f} %"
                    axes.plot(curves["recall"], curve, color=class_color(number), lw=1.2, label=label)
        if found["AP"] is None:
            axes.text(0.5, 0.5, "no objects in the ground truth", ha="center", va="center", color="0.4")
        else:
            axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
        axes.set(title={"box": "Boxes", "mask": "Masks"}[iou_type], xlabel="recall", ylabel="precision")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure


class Match(NamedTuple):
    """How the results of an image match its objects.

    Attributes:
        results: Those with a score of at least 0.5, best first.
        hits: For each result True for a hit, False for an error, None for one in a crowd region, which does not count.
        found: For each object whether a result has found it; None for a crowd region.
    """

    results: list[Mapping[str, Any]]
    hits: list[bool | None]
    found: list[bool | None]

    @property
    def errors(self) -> int:
        """Wrong results and missed objects."""
        return self.hits.count(False) + self.found.count(False)

    @property
    def f1(self) -> float:
        """F1 score; 1 for an image without objects and results."""
        hits = self.hits.count(True)
        return 2 * hits / (2 * hits + self.errors) if hits or self.errors else 1.0


def match_results(image: AnnotatedImage, results: Sequence[Mapping[str, Any]]) -> Match:
    """Match the results of an image with its objects.

    In descending order of the scores, a result finds the object of its category whose box has the largest IoU with its
    own, at least 0.5, among those not found yet. A result that finds none is not an error if half of it lies in a crowd
    region of its category.
    """
    confident = sorted((r for r in results if r["score"] >= SCORE_THRESH), key=lambda r: -r["score"])
    corners = torch.tensor([r["bbox"] for r in confident], dtype=torch.float64).reshape(-1, 4)
    boxes = box_convert(corners, "xywh", "xyxy")
    objects = torch.tensor([o.box for o in image.objects], dtype=torch.float64).reshape(-1, 4)
    ious = box_iou(boxes, objects)
    low, high = torch.maximum(boxes[:, None, :2], objects[:, :2]), torch.minimum(boxes[:, None, 2:], objects[:, 2:])
    covered = (high - low).clamp(min=0).prod(2) / corners[:, None, 2:].prod(2)  # share of a result in an object
    found: list[bool | None] = [None if o.crowd else False for o in image.objects]
    hits: list[bool | None] = []
    for i, result in enumerate(confident):
        same = [k for k, o in enumerate(image.objects) if o.category == result["category_id"]]
        free = [k for k in same if found[k] is False and ious[i, k] >= IOU_THRESH]
        if free:
            found[max(free, key=lambda k: float(ious[i, k]))] = True
        in_crowd = any(image.objects[k].crowd and covered[i, k] >= 0.5 for k in same)
        hits.append(True if free else None if in_crowd else False)
    return Match(confident, hits, found)


def draw_best_and_worst(annotations: Annotations, results: Sequence[Mapping[str, Any]]) -> Figure:
    """The best images in the first row and the worst in the second, with hits and errors in different colours.

    They are ranked by F1, see `match_results`; then the best by fewer errors and more objects, the worst by more
    errors. Images without objects and results are not drawn, and no image is drawn twice. The results are those of
    `coco_results`.
    """
    by_image: dict[int, list[Mapping[str, Any]]] = {image.id: [] for image in annotations.images}
    for result in results:
        by_image[result["image_id"]].append(result)
    matched = [(image, match_results(image, by_image[image.id])) for image in annotations.images]
    shown = [(image, match) for image, match in matched if match.hits or match.found]
    shown.sort(key=lambda one: (-one[1].f1, one[1].errors, -len(one[0].objects)))
    best = shown[: min(4, -(-len(shown) // 2))]
    worst = sorted(shown[len(best) :], key=lambda one: (one[1].f1, -one[1].errors))[:4]

    columns = max(1, len(best))
    figure = Figure(figsize=(max(6.4, 2.9 * columns), 7.4), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for row, (name, ranked) in enumerate((("best", best), ("worst", worst))):
        for column, (image, match) in enumerate(ranked):
            _draw_match(grid[row, column], annotations, image, match, f"{name} {column + 1}: {image.path.name}")
    legend = {HIT: "hit", ERROR: "wrong result; dashed: missed object", IGNORED: "crowd region, not counted"}
    patches = [Patch(color=color, label=label) for color, label in legend.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"The {len(best)} best and {len(worst)} worst of {len(annotations.images)} images by F1\n"
        f"of results with a score of at least {SCORE_THRESH:g}; "
        f"a hit has the class of an object and an IoU of at least {IOU_THRESH:g} with it",
        fontsize=10,
    )
    return figure


def _draw_match(axes: Axes, annotations: Annotations, image: AnnotatedImage, match: Match, title: str) -> None:
    """An image with its results, the objects that they miss, and crowd regions."""
    try:
        pixels = read_annotated_image(image)
    except UnreadableImage:
        axes.set_title(f"{image.path.name}: cannot be read", fontsize=9, color=ERROR)
        return
    size, names = (image.height, image.width), annotations.categories
    missed = [(o, found) for o, found in zip(image.objects, match.found, strict=True) if not found]
    boxes = box_convert(torch.tensor([r["bbox"] for r in match.results]).reshape(-1, 4), "xywh", "xyxy").tolist()
    captions = [f"{names[r['category_id']]} {r['score']:.2f}" for r in match.results]
    captions += [names[o.category] if found is False else "" for o, found in missed]
    mark_objects(
        axes,
        pixels,
        [*boxes, *(o.box for o, _ in missed)],
        [COLORS[status] for status in (*match.hits, *(found for _, found in missed))],
        masks=[decode_mask(r["segmentation"], *size) if "segmentation" in r else None for r in match.results],
        captions=captions if len(captions) <= MAX_CAPTIONS else None,
        dashed=[False] * len(boxes) + [True] * len(missed),
    )
    wrong, lost = match.hits.count(False), match.found.count(False)
    objects = lost + match.found.count(True)
    axes.set_title(f"{title}\nF1 {match.f1:.2f}, {wrong} wrong, {lost} of {objects} missed", fontsize=9)
