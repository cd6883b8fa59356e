"""COCO's segmentations: polygons, run lengths and compressed run lengths, as masks."""

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ..errors import require

# How far, in px, a box or polygon may reach beyond its image: COCO's own do so by fractions.
MARGIN = 1.0


@cache
def _library() -> Any:
    """The functions of faster-coco-eval, which unlike pycocotools' reject damaged strings and do not crash on them."""
    require(["faster_coco_eval"], "detection", "decoding of masks")
    from faster_coco_eval import mask

    return mask


def mask_problem(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with the segmentation of an image of `height` x `width` px, or None.

    It may be a list of polygons `[x1, y1, x2, y2, ...]` in px, or `{"size": [height, width], "counts": ...}` with run
    lengths as a list or a compressed string.
    """
    if isinstance(segmentation, list):
        return next(filter(None, (_polygon_problem(p, height, width) for p in segmentation)), None)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "a mask that is neither polygons nor run lengths"
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list) or len(size) != 2:
        return "a mask whose size is not [height, width]"
    if size != [height, width]:
        return f"a mask of another size than its image: {size[1]}x{size[0]} px for {width}x{height} px"
    if isinstance(counts, list) and not all(type(run) is int and run >= 0 for run in counts):
        return "a mask whose run lengths are not integers of 0 or more"
    if not isinstance(counts, list | str | bytes) or height * width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        return "a mask that is neither polygons nor run lengths of an image that can be read"
    try:
        decode_mask(segmentation, height, width)
    except (ValueError, RuntimeError) as error:
        return f"a mask whose run lengths are damaged: {error}"
    return None


def _polygon_problem(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return "a polygon that is not a list of three points x, y or more"
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in polygon):
        return "a polygon with something else than numbers"
    x, y = polygon[::2], polygon[1::2]
    if min(*x, *y) < -MARGIN or max(x) > width + MARGIN or max(y) > height + MARGIN:
        return f"a polygon that reaches outside its image of {width}x{height} px"
    return None


def _compressed(segmentation: Any, height: int, width: int) -> Any:
    """Any segmentation as compressed run lengths."""
    if isinstance(segmentation, list):
        polygons = [[float(v) for v in polygon] for polygon in segmentation]
        return _library().merge(_library().frPyObjects(polygons, height, width))
    uncompressed = isinstance(segmentation["counts"], list)
    return _library().frPyObjects(segmentation, height, width) if uncompressed else segmentation


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The mask `(height, width)`, 1 inside and 0 outside, of a segmentation without a `mask_problem`."""
    return _library().decode(_compressed(segmentation, height, width))


def mask_area(segmentation: Any, height: int, width: int) -> float:
    """The area of a segmentation in px²."""
    return float(_library().area(_compressed(segmentation, height, width)))


def mask_box(segmentation: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """The box `(x1, y1, x2, y2)` in px around the pixels of a segmentation."""
    x, y, across, down = _library().toBbox(_compressed(segmentation, height, width)).tolist()
    return x, y, x + across, y + down


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask `(height, width)` as compressed run lengths that JSON can hold."""
    encoded = _library().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
