"""Detections drawn into an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ..data.figures import LEGEND, class_color, mark_objects
from ..data.masks import decode_mask

DPI = 150
SIDE = (1000, 1600)  # px, range of the longer side of a drawing
LETTER = 0.05  # width of a caption's letter in inches
MIN_WIDTH, LEGEND_WIDTH = 4.0, 1.3  # inches, of a drawing and of an entry of its legend


def draw_detections(
    image: Image.Image, objects: Sequence[Mapping[str, Any]], labels: Sequence[int], empty: str = "no objects"
) -> Figure:
    """An image with its detections; small images are enlarged and large ones reduced, so that everything is legible.

    The longer side of the drawing is 1000 to 1600 px when saved with `DPI`. The objects are those of `predict`, their
    labels from 1 set the colours, and `empty` is the text below an image without objects.
    """
    longest = max(image.size)
    shown = image.copy()
    shown.thumbnail((SIDE[1], SIDE[1]))
    ratio = np.array([shown.width / image.width, shown.height / image.height] * 2)
    inches = min(max(longest, SIDE[0]), SIDE[1]) / longest / DPI  # of a pixel of the image
    drawn = sorted(zip(objects, labels, strict=True), key=lambda one: one[0]["score"])  # the best ones last, on top
    boxes, masks, captions = [], [], []
    for found, _ in drawn:
        x, y, width, height = found["bbox"]
        boxes.append((ratio * (x, y, x + width, y + height)).tolist())
        caption = f"{found['label']} {found['score']:.2f}"
        captions.append(caption if LETTER * len(caption) <= width * inches else f"{found['score']:.2f}")
        if "segmentation" in found:
            mask = Image.fromarray(decode_mask(found["segmentation"], image.height, image.width))
            masks.append(np.asarray(mask.resize(shown.size, Image.Resampling.NEAREST)))
    names = dict(sorted({label: found["label"] for found, label in drawn}.items())[:LEGEND])
    width, height = max(inches * image.width, MIN_WIDTH), inches * image.height
    per_line = max(1, min(len(names), int(width / LEGEND_WIDTH)))
    strip = 0.1 + 0.2 * max(1, -(-len(names) // per_line))
    figure = Figure(figsize=(width, height + strip))
    axes = figure.add_axes((0.0, strip / (height + strip), 1.0, height / (height + strip)))
    colors = [class_color(label) for _, label in drawn]
    mark_objects(axes, shown, boxes, colors, masks=masks or None, captions=captions)
    if names:
        patches = [Patch(color=class_color(label), label=name) for label, name in names.items()]
        figure.legend(handles=patches, loc="lower center", ncols=per_line, frameon=False, fontsize=8, borderaxespad=0.2)
    else:
        figure.text(0.5, strip / 2 / (height + strip), empty, ha="center", va="center", fontsize=8, color="0.35")
    return figure
