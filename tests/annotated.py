"""Annotated images of 180x150 px, and results of a detector near their objects."""

from pathlib import Path

import numpy as np

from patnet.data.annotations import AnnotatedImage, AnnotatedObject, Annotations
from patnet.data.masks import encode_mask, mask_area

HEIGHT, WIDTH = 150, 180


def block(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return encode_mask(mask)


def an_object(category, x1, y1, x2, y2, *, crowd=False, polygon=False):
    segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]] if polygon else block(x1, y1, x2, y2)
    return AnnotatedObject(category, (x1, y1, x2, y2), mask_area(segmentation, HEIGHT, WIDTH), crowd, segmentation)


def a_result(image_id, category, x1, y1, x2, y2, score=0.9):
    box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    result = {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
    return {**result, "segmentation": block(x1, y1, x2, y2)}


def annotated(*objects, names=("cat", "dog"), folder=Path()):
    """An image with id 7, 10, ... for each list of objects; the categories have ids 5, 7, ..."""
    images = [AnnotatedImage(7 + 3 * i, folder / f"{i}.png", WIDTH, HEIGHT, list(o)) for i, o in enumerate(objects)]
    return Annotations(folder / "truth.json", {5 + 2 * k: name for k, name in enumerate(names)}, images)
