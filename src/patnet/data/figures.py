"""Figures of images with boxes and masks, and of the distributions of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from .annotations import AnnotatedImage, Annotations
from .detection import read_annotated_image
from .images import UnreadableImage
from .masks import decode_mask

BLUE, GREY, RED = "#0072B2", "0.6", "#c1121f"
LEGEND = 20  # classes in a legend


def class_color(label: int) -> tuple[float, float, float]:
    """The colour of label 1, 2, ...: ten, then ten lighter ones, then the same again."""
    place = (label - 1) % 20
    return colormaps["tab20"](2 * (place % 10) + place // 10)[:3]


def mark_objects(
    axes: Axes,
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    colors: Sequence[Any],
    *,
    masks: Sequence[np.ndarray | None] | None = None,
    captions: Sequence[str] | None = None,
    dashed: Sequence[bool] | None = None,
) -> None:
    """Draw an image with its objects into `axes`.

    The boxes are `x1, y1, x2, y2` in px; the masks `(H, W)` have the image's size, or are None for some objects.
    """
    axes.axis("off")
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    overlay = np.zeros((image.height, image.width, 4), np.float32)
    for color, mask in zip(colors, masks or [], strict=False):
        if mask is not None:
            overlay[mask > 0] = to_rgba(color, 0.4)
    if masks:
        axes.imshow(overlay)
    for i, ((x1, y1, x2, y2), color) in enumerate(zip(boxes, colors, strict=True)):
        style = "--" if dashed is not None and dashed[i] else "-"
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=1.1, ls=style))
        if captions is not None:
            right, bottom = x1 > 0.8 * image.width, y1 > 0.95 * image.height  # where a caption would be cut off
            axes.text(
                min(x2, image.width) if right else x1,
                min(y2, image.height) if bottom else y1,
                captions[i],
                fontsize=7,
                color="white",
                ha="right" if right else "left",
                va="bottom" if bottom else "top",
                clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.6},
            )


def _draw_annotated(axes: Axes, image: AnnotatedImage, annotations: Annotations) -> set[int]:
    """Draw an annotated image, and give the labels of its objects."""
    try:
        pixels = read_annotated_image(image)
    except UnreadableImage:
        axes.axis("off")
        axes.set_title(f"{image.path.name}: cannot be read", fontsize=9, color=RED)
        return set()
    labels = [annotations.category_ids.index(o.category) + 1 for o in image.objects]
    size = (image.height, image.width)
    mark_objects(
        axes,
        pixels,
        [o.box for o in image.objects],
        [class_color(label) for label in labels],
        masks=[None if o.segmentation is None else decode_mask(o.segmentation, *size) for o in image.objects],
        captions=[annotations.class_names[k - 1] for k in labels] if len(labels) <= 8 else None,
        dashed=[o.crowd for o in image.objects],
    )
    number = f"{len(labels)} object{'' if len(labels) == 1 else 's'}" if labels else "no objects"
    axes.set_title(f"{image.path.name}\n{image.width}x{image.height} px, {number}", fontsize=9)
    return set(labels)


def draw_samples(annotations: Annotations) -> Figure:
    """Twelve random images with boxes and masks, crowd regions with dashed lines.

    An image without objects and one with a crowd region are among them where there are any.
    """
    images = annotations.images
    order = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    first = [image for image in order if not image.objects][:1]
    first += [image for image in order if any(o.crowd for o in image.objects)][:1]
    chosen = list({image.id: image for image in [*first, *(i for i in order if i.objects)]}.values())[:12]
    chosen.sort(key=lambda image: image.id)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.6 * max(columns, 2), 3.5 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(chosen) :]:
        axes.remove()
    drawn = (_draw_annotated(axes, image, annotations) for axes, image in zip(grid, chosen, strict=False))
    shown = sorted(set().union(*drawn))[:LEGEND]
    if shown:
        patches = [Patch(color=class_color(k), label=annotations.class_names[k - 1]) for k in shown]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(8, len(shown)), frameon=False)
    figure.suptitle(f"{annotations.source.name}: {len(chosen)} of {len(images)} images")
    return figure


def draw_distributions(annotations: Annotations, report: Mapping[str, Any]) -> Figure:
    """Objects of each class and per image, and the sizes of objects and images; `report` is that of the check."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (classes, areas), (numbers, sizes) = figure.subplots(2, 2)
    most = sorted(report["classes"], key=lambda c: -c["annotations"])[:30]
    bars = classes.barh(range(len(most)), [c["annotations"] for c in most], color=BLUE)
    classes.set_yticks(range(len(most)), [c["name"] for c in most])  # two classes may have the same name
    classes.bar_label(bars, fontsize=9, padding=2)
    classes.margins(x=0.12)
    classes.invert_yaxis()
    classes.tick_params(axis="y", labelsize=10 if len(most) < 15 else 7)
    hidden = len(report["classes"]) - len(most)
    classes.set(title="Objects of each class" + (f", {hidden} more not shown" if hidden else ""), xlabel="objects")

    sides = np.sqrt([o.area for image in annotations.images for o in image.objects if not o.crowd])
    if len(sides):
        low, high = float(sides.min()) * 0.9, float(sides.max()) * 1.1
        areas.hist(sides, bins=np.geomspace(low, max(high, low * 1.5), 40).tolist(), color=BLUE)
        areas.set_xscale("log")
        ticks = [t for t in (2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024) if t in (32, 96) or low <= t <= high]
        areas.set_xticks(ticks, [str(t) for t in ticks])
        areas.minorticks_off()
        for border in (32, 96):
            areas.axvline(border, color=GREY, lw=1, ls="--")
        count = ", ".join(f"{count} {name}" for name, count in report["sizes"].items())
        label = "square root of the area, px (dashed: COCO's limits)"
        areas.set(title=f"Sizes of objects: {count}", xlabel=label, ylabel="objects")
    else:
        areas.remove()

    per_image = [len(image.objects) for image in annotations.images]
    bins: Any = np.arange(max(per_image) + 2) - 0.5 if max(per_image) < 60 else 50
    numbers.hist(per_image, bins=bins, color=BLUE)
    empty = report["images_without_objects"]
    numbers.set(title=f"Objects per image, {empty} without", xlabel="objects", ylabel="images")
    widths, heights = ([getattr(image, side) for image in annotations.images] for side in ("width", "height"))
    sizes.plot(widths, heights, "o", color=BLUE, ms=5, alpha=0.35, mec="none")
    longest = 1.08 * max(*widths, *heights)
    sizes.plot([0, longest], [0, longest], color=GREY, lw=1, ls="--")
    sizes.set(title="Sizes of images", xlabel="width, px", ylabel="height, px", xlim=(0, longest), ylim=(0, longest))
    for axes in (areas, numbers, sizes):
        axes.grid(alpha=0.3)
    for axis in (areas.yaxis, numbers.yaxis, numbers.xaxis, classes.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{annotations.source.name}: {report['images']} images, {report['annotations']} objects")
    return figure
