"""Annotated images and the distributions of a data set, drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .annotations import Annotations
from .detection import read_annotated_image
from .images import UnreadableImage
from .masks import decode_mask

__all__ = ["class_color", "draw_distributions", "draw_samples", "mark_objects"]

BLUE, GREY, RED = "#2a6f97", "0.6", "#c1121f"


def class_color(label: int) -> tuple[float, float, float]:
    """The colour of label 1, 2, ...; ten, then ten lighter ones, then again."""
    place = (label - 1) % 20
    return colormaps["tab20"](2 * (place % 10) + place // 10)[:3]


def mark_objects(
    axes: Axes,
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    masks: Sequence[np.ndarray | None] | None = None,
    captions: Sequence[str] | None = None,
    dashed: Sequence[bool] | None = None,
) -> None:
    """Draw a image with its objects into `axes`.

    Args:
        axes: Where to.
        image: Grey or in colour.
        boxes: x1, y1, x2, y2 in px of each object.
        labels: Of each, 1 or more, for the colours.
        masks: `(H, W)` of each, in the image's size; None for an object without one.
        captions: Beside each box.
        dashed: Which boxes to draw in dashes.
    """
    axes.axis("off")
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    overlay = np.zeros((image.height, image.width, 4), np.float32)
    for i, mask in enumerate(masks or []):
        if mask is not None:
            overlay[mask > 0] = (*class_color(labels[i]), 0.4)
    if masks:
        axes.imshow(overlay)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        color = class_color(labels[i])
        style = "--" if dashed is not None and dashed[i] else "-"
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.1, ls=style))
        if captions is not None:
            right, bottom = x1 > 0.8 * image.width, y1 > 0.95 * image.height  # there it would be cut off
            axes.text(
                min(x2, image.width) if right else x1,
                min(y2, image.height) if bottom else y1,
                captions[i],
                fontsize=6,
                color="white",
                ha="right" if right else "left",
                va="bottom" if bottom else "top",
                clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6},
            )


def draw_samples(annotations: Annotations, count: int = 12, seed: int = 0) -> Figure:
    """Some images with boxes and masks, crowd regions in dashes; the same seed draws the same ones.

    A image without objects is among them where there is one, and one with a crowd region.
    """
    images = annotations.images
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    first = [i for i in order if not images[i].objects][:1]
    first += [i for i in order if any(o.crowd for o in images[i].objects)][:1]
    chosen = sorted(list(dict.fromkeys(first + [i for i in order if images[i].objects]))[:count])
    columns = min(4, max(1, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(3.6 * max(columns, 2), 3.3 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    label_of = {number: label for label, number in enumerate(annotations.categories, start=1)}
    shown: set[int] = set()
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(grid, chosen, strict=False):
        annotated = images[index]
        try:
            pixels = read_annotated_image(annotated)
        except UnreadableImage:
            axes.set_title(f"{annotated.path.name}: cannot be read", fontsize=7.5, pad=3, color=RED)
            continue
        labels = [label_of[o.category] for o in annotated.objects]
        shown.update(labels)
        masks = [
            None if o.segmentation is None else decode_mask(o.segmentation, annotated.height, annotated.width)
            for o in annotated.objects
        ]
        mark_objects(
            axes,
            pixels,
            [o.box for o in annotated.objects],
            labels,
            masks=masks,
            captions=[annotations.class_names[k - 1] for k in labels] if len(labels) <= 8 else None,
            dashed=[o.crowd for o in annotated.objects],
        )
        number = len(annotated.objects)
        count_text = f"{number} object{'' if number == 1 else 's'}" if number else "no objects"
        title = f"{annotated.path.name}, {annotated.width}x{annotated.height} px, {count_text}"
        axes.set_title(title, fontsize=7.5, pad=3)
    names = [(k, annotations.class_names[k - 1]) for k in sorted(shown)[:20]]
    if names:
        patches = [Patch(color=class_color(k), label=name) for k, name in names]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(names)), frameon=False, fontsize=9)
    figure.suptitle(f"{annotations.source.name}: {len(chosen)} of {len(images)} images", fontsize=11)
    return figure


def draw_distributions(annotations: Annotations, report: Mapping[str, Any]) -> Figure:
    """Objects of each class, their sizes, objects in a image, and sizes of images.

    Args:
        annotations: The data set.
        report: As `patnet.data.check.report` gives it.
    """
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (classes, areas), (numbers, sizes) = figure.subplots(2, 2)
    most = sorted(report["classes"], key=lambda c: -c["annotations"])[:30]
    bars = classes.barh([c["name"] for c in most], [c["annotations"] for c in most], color=BLUE)
    classes.bar_label(bars, fontsize=8, padding=2)
    classes.margins(x=0.12)
    classes.invert_yaxis()
    classes.tick_params(axis="y", labelsize=9 if len(most) < 15 else 6)
    left_out = len(report["classes"]) - len(most)
    classes.set(title="Objects of each class" + (f", {left_out} more not shown" if left_out else ""), xlabel="objects")

    sides = np.sqrt([o.area for image in annotations.images for o in image.objects if not o.crowd])
    if len(sides):
        low, high = max(1.0, float(sides.min()) * 0.9), float(sides.max()) * 1.1
        areas.hist(sides, bins=np.geomspace(low, max(high, low * 1.5), 40).tolist(), color=BLUE)
    areas.set_xscale("log")
    ticks = [
        t for t in (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024) if t in (32, 96) or (len(sides) and low <= t <= high)
    ]
    areas.set_xticks(ticks, [str(t) for t in ticks])
    areas.minorticks_off()
    for border in (32, 96):
        areas.axvline(border, color=GREY, lw=1, ls="--")
    said = ", ".join(f"{count} {name}" for name, count in report["sizes"].items())
    areas.set(title=f"Sizes of objects: {said}", xlabel="square root of the area, px", ylabel="objects")

    held = [len(image.objects) for image in annotations.images]
    top = max(held, default=0)
    numbers.hist(held, bins=(np.arange(top + 2) - 0.5).tolist() if top < 60 else 50, color=BLUE)
    numbers.set(
        title=f"Objects in a image, {report['images_without_objects']} without", xlabel="objects", ylabel="images"
    )
    widths, heights = ([getattr(p, side) for p in annotations.images] for side in ("width", "height"))
    sizes.plot(widths, heights, "o", color=BLUE, ms=5, alpha=0.35, mec="none")
    longest = 1.08 * max([*widths, *heights], default=1)
    sizes.plot([0, longest], [0, longest], color=GREY, lw=1, ls="--")
    sizes.set(title="Sizes of images", xlabel="width, px", ylabel="height, px", xlim=(0, longest), ylim=(0, longest))
    for axes in (areas, numbers, sizes):
        axes.grid(alpha=0.3)
    for axis in (areas.yaxis, numbers.yaxis, numbers.xaxis, classes.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{annotations.source.name}: {report['images']} images, {report['annotations']} objects")
    return figure
