"""The contents of annotation files of any format: images, objects with boxes and masks, and what is invalid."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from .masks import MARGIN, mask_area, mask_problem

__all__ = ["AnnotatedImage", "AnnotatedObject", "Annotations", "Fault", "checked_object", "keep_existing"]


class AnnotatedObject(NamedTuple):
    """An object in an image.

    Attributes:
        category: Id of its category.
        box: `(x1, y1, x2, y2)` in px, inside the image.
        area: Area in px², of the mask where there is one.
        crowd: Whether it is a region with several objects, or one that evaluation ignores.
        segmentation: Polygons (as arrays) or run lengths as in COCO, see `patnet.data.masks`; None for a box alone.
    """

    category: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    segmentation: Any = None


@dataclass(slots=True)
class AnnotatedImage:
    """An image: its id, file, size in px, and objects."""

    id: int
    path: Path
    width: int
    height: int
    objects: list[AnnotatedObject] = field(default_factory=list)


class Fault(NamedTuple):
    """Something invalid that is left out: its place in the file, the problem, and the annotations it costs."""

    where: str
    problem: str
    annotations: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"

    @property
    def kind(self) -> str:
        """The problem without its numbers."""
        return self.problem.partition(":")[0]


@dataclass(frozen=True)
class Annotations:
    """The valid contents of an annotation file.

    Attributes:
        source: The file or folder.
        categories: Names by id, in ascending order of the ids; label 1 is the first.
        images: Images in ascending order of their ids.
        faults: What is invalid and left out.
        total: Number of annotations in the source, with those left out.
    """

    source: Path
    categories: dict[int, str]
    images: list[AnnotatedImage]
    faults: list[Fault] = field(default_factory=list)
    total: int = 0

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in the order of the labels 1, 2, ..."""
        return list(self.categories.values())

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories; label `k` is `category_ids[k - 1]`."""
        return list(self.categories)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all(o.segmentation is not None for image in self.images for o in image.objects)

    @property
    def invalid(self) -> Counter[str]:
        """The number of annotations left out, by problem."""
        kinds: Counter[str] = Counter()
        for fault in self.faults:
            kinds[fault.kind] += fault.annotations
        return kinds

    def is_valid(self, max_invalid: float) -> bool:
        """Whether at most the share `max_invalid` of the annotations is left out."""
        return self.invalid.total() <= max_invalid * max(self.total, len(self.images))

    def require_valid(self, max_invalid: float = 0.01) -> None:
        """Check that at most the share `max_invalid` of the annotations is left out.

        Raises:
            InputError: Otherwise, with the problems and the first place.
        """
        if self.is_valid(max_invalid):
            return
        listed = ", ".join(f"{count} with {kind}" for kind, count in self.invalid.most_common(3))
        raise InputError(
            f"{self.source}: {self.invalid.total()} of {self.total} annotations are invalid ({listed}), more than a "
            f"share of {max_invalid:g}, first {self.faults[0]}; patnet data check lists them: correct them, or raise "
            "--max-invalid"
        )

    def as_coco(self) -> dict[str, Any]:
        """The contents in COCO's format, annotations numbered from 1, polygons unchanged."""
        objects = [(image.id, o) for image in self.images for o in image.objects]
        return {
            "images": [
                {"id": i.id, "file_name": i.path.name, "width": i.width, "height": i.height} for i in self.images
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": o.category,
                    "bbox": [o.box[0], o.box[1], o.box[2] - o.box[0], o.box[3] - o.box[1]],
                    "area": o.area,
                    "iscrowd": int(o.crowd),
                    **({} if o.segmentation is None else {"segmentation": _as_json(o.segmentation)}),
                }
                for number, (image_id, o) in enumerate(objects, start=1)
            ],
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
        }


def _as_json(segmentation: Any) -> Any:
    return [list(polygon) for polygon in segmentation] if isinstance(segmentation, list) else segmentation


def checked_object(
    image: AnnotatedImage,
    category: int,
    box: Sequence[Any],
    *,
    area: float | None = None,
    crowd: bool = False,
    segmentation: Any = None,
) -> AnnotatedObject | str:
    """An object of an image with its box clipped to the image, or what is wrong with it.

    Args:
        image: The image.
        category: Id of the category.
        box: `(x1, y1, x2, y2)` in px, unchecked.
        area: Area in px²; None computes it from the mask, or from the box.
        crowd: Whether it is a crowd region.
        segmentation: Segmentation as in COCO, unchecked; None for a box alone.
    """
    height, width = image.height, image.width
    problem = _box_problem(box, height, width)
    if problem is None and segmentation is not None:
        problem = mask_problem(segmentation, height, width)
    if problem is not None:
        return problem
    x1, y1, x2, y2 = box
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if area is None:
        area = (x2 - x1) * (y2 - y1) if segmentation is None else mask_area(segmentation, height, width)
    if isinstance(segmentation, list):  # a quarter of the memory, of which each loader worker has a copy
        segmentation = [array("d", polygon) for polygon in segmentation]
    return AnnotatedObject(category, (x1, y1, x2, y2), area, crowd, segmentation)


def _box_problem(box: Sequence[Any], height: int, width: int) -> str | None:
    if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return "a box that is not four numbers"
    x1, y1, x2, y2 = box
    values = f"{x1:g}, {y1:g} to {x2:g}, {y2:g} in {width}x{height} px"
    if x2 < x1 or y2 < y1:
        return f"a box whose right or lower side comes before its left or upper one: {values}"
    if x2 == x1 or y2 == y1:
        return f"a box of no area: {values}"
    outside = x1 < -MARGIN or y1 < -MARGIN or x2 > width + MARGIN or y2 > height + MARGIN
    if outside or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return f"a box outside its image: {values}"
    return None


def keep_existing(source: Path, images: Sequence[AnnotatedImage], faults: list[Fault]) -> list[AnnotatedImage]:
    """The images whose files exist; the others are added to `faults`.

    Raises:
        InputError: If none exists.
    """
    files: dict[Path, set[str]] = {}
    for folder in {image.path.parent for image in images}:
        try:
            files[folder] = set(os.listdir(folder))  # noqa: PTH208 - names alone, for a hundred thousand files
        except OSError:
            files[folder] = set()
    missing = [image for image in images if image.path.name not in files[image.path.parent]]
    if missing and len(missing) == len(images):
        raise InputError(
            f"{source}: none of its {len(missing)} images exists, such as {missing[0].path}; "
            "give their folder with --images"
        )
    faults += [Fault(str(i.path), "an image that is missing", max(1, len(i.objects))) for i in missing]
    return [image for image in images if image.path.name in files[image.path.parent]]
