"""What a data set of pictures with boxes and masks holds, and what is wrong with it."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from .annotations import AnnotatedPicture, Annotations, Fault
from .detection import read_as_annotated
from .masks import mask_box

__all__ = ["check_pictures", "report_on"]

# COCO's borders between small, medium and large objects: sides of 32 and 96 px.
SMALL, MEDIUM = 32**2, 96**2


def check_pictures(
    annotations: Annotations, *, decode: bool = False, done: Callable[[], None] = lambda: None
) -> Annotations:
    """The same annotations without the pictures that cannot be read or are of another size, which become faults.

    Args:
        annotations: As read.
        decode: Read every pixel; the sizes alone are in the first bytes of a file.
        done: Called after each picture.
    """
    kept: list[AnnotatedPicture] = []
    faults = list(annotations.faults)
    for picture in annotations.pictures:
        try:
            if decode or not _size_is_as_said(picture):
                read_as_annotated(picture)
            kept.append(picture)
        except InputError as error:
            reason = str(error).removeprefix(f"{picture.path}: ")
            problem = f"a picture that cannot be used: {reason}"
            faults.append(Fault(str(picture.path), problem, max(1, len(picture.objects))))
        done()
    return replace(annotations, pictures=kept, faults=faults)


def _size_is_as_said(picture: AnnotatedPicture) -> bool:
    # As stored: where EXIF turns the picture, read_as_annotated turns it back.
    try:
        with Image.open(picture.path) as opened:
            return opened.size == (picture.width, picture.height)
    except Exception:  # read_image says what it is
        return False


def _spread(values: list[int]) -> dict[str, float]:
    """Least, middle, mean and greatest."""
    if not values:
        return {"min": 0, "median": 0.0, "mean": 0.0, "max": 0}
    return {
        "min": min(values),
        "median": float(np.median(values)),
        "mean": round(float(np.mean(values)), 2),
        "max": max(values),
    }


def _remarks(annotations: Annotations) -> list[str]:
    """What is odd, but used as it is: objects given twice, boxes that do not fit their masks, classes of no object."""
    remarks = []
    for picture in annotations.pictures:
        seen: set[tuple[int, tuple[float, ...]]] = set()
        for o in picture.objects:
            name = annotations.categories[o.category]
            if (o.category, o.box) in seen:
                remarks.append(f"{picture.path.name}: an object {name!r} is given twice, with the same box")
            seen.add((o.category, o.box))
            if o.segmentation is None or o.crowd:
                continue
            around = mask_box(o.segmentation, picture.height, picture.width)
            slack = max(2.0, 0.05 * max(o.box[2] - o.box[0], o.box[3] - o.box[1]))
            if max(abs(a - b) for a, b in zip(around, o.box, strict=True)) > slack:
                box, mask = (", ".join(f"{v:g}" for v in sides) for sides in (o.box, around))
                remarks.append(f"{picture.path.name}: the box of an object {name!r}, {box}, is not its mask's, {mask}")
    used = {o.category for picture in annotations.pictures for o in picture.objects}
    remarks += [
        f"class {name!r} has no object" for number, name in annotations.categories.items() if number not in used
    ]
    files = Counter(picture.path for picture in annotations.pictures)
    return remarks + [f"{path.name}: stands for {count} pictures" for path, count in files.items() if count > 1]


def report_on(annotations: Annotations, max_faults: float = 0.01) -> dict[str, Any]:
    """Counts, sizes, faults and remarks, as JSON holds them.

    `sizes` counts small, medium and large objects by COCO's areas, crowd regions left out; `usable` is whether at most
    a share `max_faults` of the annotations is wrong, and there is an object.
    """
    objects = [o for picture in annotations.pictures for o in picture.objects]
    single = [o for o in objects if not o.crowd]
    counts = Counter(o.category for o in objects)
    shown_in: dict[int, set[int]] = defaultdict(set)
    for picture in annotations.pictures:
        for o in picture.objects:
            shown_in[o.category].add(picture.id)
    kinds = annotations.fault_kinds
    wrong = kinds.total()
    return {
        "source": str(annotations.source),
        "pictures": len(annotations.pictures),
        "annotations": len(objects),
        "masks": sum(o.segmentation is not None for o in objects),
        "crowd_regions": len(objects) - len(single),
        "pictures_without_objects": sum(not picture.objects for picture in annotations.pictures),
        "classes": [
            {
                "label": label,
                "category_id": number,
                "name": name,
                "annotations": counts[number],
                "pictures": len(shown_in[number]),
            }
            for label, (number, name) in enumerate(annotations.categories.items(), start=1)
        ],
        "sizes": {
            "small": sum(o.area < SMALL for o in single),
            "medium": sum(SMALL <= o.area < MEDIUM for o in single),
            "large": sum(o.area >= MEDIUM for o in single),
        },
        "objects_per_picture": _spread([len(picture.objects) for picture in annotations.pictures]),
        "width": _spread([picture.width for picture in annotations.pictures]),
        "height": _spread([picture.height for picture in annotations.pictures]),
        "wrong": {
            "annotations": wrong,
            "share": round(wrong / max(1, annotations.total, len(annotations.pictures)), 6),
            "kinds": dict(kinds.most_common()),
            "listed": [str(fault) for fault in annotations.faults],
        },
        "remarks": _remarks(annotations),
        "usable": bool(objects) and annotations.is_within(max_faults),
    }
