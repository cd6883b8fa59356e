"""What was found in a picture, drawn into it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ..data.figures import class_color, mark_objects
from ..data.masks import decode_mask

__all__ = ["DPI", "draw_detections"]

DPI = 150
DRAWN = (800, 1600)  # px that the longer side of a drawing has at least and at most
NAMED = 20  # classes in the legend
LEAST_WIDTH, LEGEND_WIDTH = 4.0, 1.3  # inches, of a drawing and of an entry of its legend


def draw_detections(
    picture: Image.Image, objects: Sequence[Mapping[str, Any]], labels: Sequence[int], nothing: str = ""
) -> Figure:
    """A picture with what was found in it; a small one is drawn larger, a large one smaller, so that all can be read.

    Args:
        picture: Of any size; the longer side is 800 to 1600 px in the drawing, to be saved with `DPI`.
        objects: With `label`, `score`, `bbox` and perhaps `segmentation`, as `patnet.detection.predict` gives them.
        labels: Of each, for the colours.
        nothing: What to say where no object was found.
    """
    longest = max(picture.size)
    scale = min(1.0, DRAWN[1] / longest)
    width, height = picture.width, picture.height
    shown = picture if scale == 1 else picture.resize((round(scale * width) or 1, round(scale * height) or 1))
    across, down = shown.width / width, shown.height / height
    inches = max(DRAWN[0], min(DRAWN[1], longest)) / longest / DPI
    # The best ones are drawn last, over the others.
    order = list(reversed(range(len(objects))))
    boxes, masks = [], []
    for found in (objects[i] for i in order):
        x, y, wide, high = found["bbox"]
        boxes.append((across * x, down * y, across * (x + wide), down * (y + high)))
        mask = decode_mask(found["segmentation"], height, width) if "segmentation" in found else None
        if mask is not None and shown is not picture:
            mask = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST))
        masks.append(mask)
    names = dict(sorted(zip(labels, (found["label"] for found in objects), strict=True))[:NAMED])
    columns = max(1, min(len(names), int(max(inches * width, LEAST_WIDTH) / LEGEND_WIDTH)))
    lines = -(-len(names) // columns) if names else 1
    strip = 0.1 + 0.2 * lines
    figure = Figure(figsize=(max(inches * width, LEAST_WIDTH), inches * height + strip))
    size = figure.get_size_inches()
    axes = figure.add_axes((0.0, strip / size[1], 1.0, 1 - strip / size[1]))
    mark_objects(
        axes,
        shown,
        boxes,
        [labels[i] for i in order],
        masks=masks,
        captions=[f"{objects[i]['label']} {objects[i]['score']:.2f}" for i in order],
    )
    if names:
        patches = [Patch(color=class_color(label), label=name) for label, name in names.items()]
        figure.legend(handles=patches, loc="lower center", ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2)
    else:
        figure.text(0.5, strip / 2 / size[1], nothing, ha="center", va="center", fontsize=8, color="0.35")
    return figure
