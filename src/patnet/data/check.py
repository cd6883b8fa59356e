"""The check of a data set of images with boxes and masks: what it holds, and what is wrong with it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from .annotations import AnnotatedImage, Annotations, Fault
from .detection import read_annotated_image
from .images import UnreadableImage
from .masks import mask_box

# COCO's limits of the areas of small and medium objects: sides of 32 and 96 px.
SMALL, MEDIUM = 32**2, 96**2


def check_images(
    annotations: Annotations, *, decode: bool = False, done: Callable[[], None] = lambda: None
) -> Annotations:
    """The same annotations without the images that cannot be read or have another size, which become faults.

    Only the first bytes of a file are read, for its size, unless `decode`; `done` is called after each image.
    """
    kept, faults = [], list(annotations.faults)
    for image in annotations.images:
        try:
            if decode or not _has_annotated_size(image):
                read_annotated_image(image)
            kept.append(image)
        except UnreadableImage as error:
            problem = f"an image that cannot be used: {error.reason}"
            faults.append(Fault(str(image.path), problem, max(1, len(image.objects))))
        done()
    return replace(annotations, images=kept, faults=faults)


def _has_annotated_size(image: AnnotatedImage) -> bool:
    # As stored: where an EXIF orientation rotates the image, read_annotated_image rotates it back.
    try:
        with Image.open(image.path) as opened:
            return opened.size == (image.width, image.height)
    except Exception:  # read_annotated_image reports it
        return False


def _spread(values: Sequence[int]) -> dict[str, float]:
    values = values or [0]
    median, mean = float(np.median(values)), round(float(np.mean(values)), 2)
    return {"min": min(values), "median": median, "mean": mean, "max": max(values)}


def _remarks(annotations: Annotations) -> list[str]:
    """What is unusual but used: repeated objects, boxes that do not fit their masks, classes without objects."""
    remarks = []
    for image in annotations.images:
        seen: set[tuple[int, tuple[float, ...]]] = set()
        for o in image.objects:
            name = annotations.categories[o.category]
            if (o.category, o.box) in seen:
                remarks.append(f"{image.path.name}: an object {name!r} is given twice, with the same box")
            seen.add((o.category, o.box))
            if o.segmentation is None or o.crowd:
                continue
            around = mask_box(o.segmentation, image.height, image.width)
            tolerance = max(2.0, 0.05 * max(o.box[2] - o.box[0], o.box[3] - o.box[1]))
            if max(abs(a - b) for a, b in zip(around, o.box, strict=True)) > tolerance:
                box, mask = (", ".join(f"{v:g}" for v in sides) for sides in (o.box, around))
                remarks.append(f"{image.path.name}: the box of an object {name!r}, {box}, is not its mask's, {mask}")
    used = {o.category for image in annotations.images for o in image.objects}
    remarks += [f"class {name!r} has no object" for id_, name in annotations.categories.items() if id_ not in used]
    files = Counter(image.path for image in annotations.images)
    return remarks + [f"{path.name}: is listed as {count} images" for path, count in files.items() if count > 1]


def report(annotations: Annotations, max_invalid: float) -> dict[str, Any]:
    """Counts, sizes, faults and remarks, as JSON holds them.

    `sizes` counts small, medium and large objects by COCO's areas, without crowd regions; `usable` is whether at most a
    share `max_invalid` of the annotations is invalid, and there is an object.
    """
    objects = [o for image in annotations.images for o in image.objects]
    areas = np.array([o.area for o in objects if not o.crowd])
    counts = Counter(o.category for o in objects)
    shown = Counter(category for image in annotations.images for category in {o.category for o in image.objects})
    return {
        "source": str(annotations.source),
        "images": len(annotations.images),
        "annotations": len(objects),
        "masks": sum(o.segmentation is not None for o in objects),
        "crowd_regions": len(objects) - len(areas),
        "images_without_objects": sum(not image.objects for image in annotations.images),
        "classes": [
            {"label": label, "category_id": id_, "name": name, "annotations": counts[id_], "images": shown[id_]}
            for label, (id_, name) in enumerate(annotations.categories.items(), start=1)
        ],
        "sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "objects_per_image": _spread([len(image.objects) for image in annotations.images]),
        "width": _spread([image.width for image in annotations.images]),
        "height": _spread([image.height for image in annotations.images]),
        "invalid": {
            "annotations": annotations.invalid.total(),
            "share": round(annotations.invalid_share, 6),
            "problems": dict(annotations.invalid.most_common()),
            "listed": [str(fault) for fault in annotations.faults],
        },
        "remarks": _remarks(annotations),
        "usable": bool(objects) and annotations.invalid_share <= max_invalid,
    }
