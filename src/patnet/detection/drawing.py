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
DRAWN = (1000, 1600)  # px that the longer side of a drawing has at least and at most
NAMED = 20  # classes in the legend
LETTER = 0.045  # inches that a letter of a caption is wide
LEAST_WIDTH, LEGEND_WIDTH = 4.0, 1.3  # inches, of a drawing and of an entry of its legend


def draw_detections(
    picture: Image.Image, objects: Sequence[Mapping[str, Any]], labels: Sequence[int], nothing: str = ""
) -> Figure:
    """A picture with what was found in it; a small one is drawn larger, a large one smaller, so that all can be read.

    Args:
        picture: Of any size; the longer side is 1000 to 1600 px in the drawing, to be saved with `DPI`.
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
    nearest = np.ix_(
        ((np.arange(shown.height) + 0.5) / down).astype(int), ((np.arange(shown.width) + 0.5) / across).astype(int)
    )
    # The best ones are drawn last, over the others.
    order = list(reversed(range(len(objects))))
    boxes, masks, captions = [], [], []
    for found in (objects[i] for i in order):
        x, y, wide, high = found["bbox"]
        boxes.append((across * x, down * y, across * (x + wide), down * (y + high)))
        caption = f"{found['label']} {found['score']:.2f}"
        fits = LETTER * len(caption) <= wide * inches
        captions.append(caption if fits else f"{found['score']:.2f}")  # the colour tells the class
        mask = decode_mask(found["segmentation"], height, width) if "segmentation" in found else None
        if mask is not None and shown is not picture:
            mask = mask[nearest]
        masks.append(mask)
    names = dict(sorted({k: found["label"] for k, found in zip(labels, objects, strict=True)}.items())[:NAMED])
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
        captions=captions,
    )
    if names:
        patches = [Patch(color=class_color(label), label=name) for label, name in names.items()]
        figure.legend(handles=patches, loc="lower center", ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2)
    else:
        figure.text(0.5, strip / 2 / size[1], nothing, ha="center", va="center", fontsize=8, color="0.35")
    return figure
