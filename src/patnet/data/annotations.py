"""What annotation files of any format hold: pictures, objects with boxes and masks, and what is wrong with them."""

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

__all__ = ["AnnotatedObject", "AnnotatedPicture", "Annotations", "Fault", "box_problem"]


class AnnotatedObject(NamedTuple):
    """An object in a picture.

    Attributes:
        category: Id of its category.
        box: `(x1, y1, x2, y2)` in px, inside the picture.
        area: In px², of the mask where there is one.
        crowd: A region with several objects, or one that evaluation passes over.
        segmentation: Polygons (as arrays) or run lengths as in COCO, see `patnet.data.masks`; None for a box alone.
    """

    category: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    segmentation: Any = None


@dataclass(slots=True)
class AnnotatedPicture:
    """A picture: its id, file, size in px, and objects."""

    id: int
    path: Path
    width: int
    height: int
    objects: list[AnnotatedObject] = field(default_factory=list)


class Fault(NamedTuple):
    """Something that was passed over: where in the file, what, and how many annotations went with it."""

    where: str
    problem: str
    annotations: int = 1

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"

    @property
    def kind(self) -> str:
        """The problem without its numbers."""
        return self.problem.partition(":")[0]


@dataclass
class Annotations:
    """The contents of an annotation file, without what is wrong.

    Attributes:
        source: The file or folder.
        categories: Names by id, in ascending order of the ids; label 1 is the first.
        pictures: In ascending order of their ids.
        faults: What was passed over.
        total: Annotations in the source, with those that were passed over.
    """

    source: Path
    categories: dict[int, str]
    pictures: list[AnnotatedPicture]
    faults: list[Fault] = field(default_factory=list)
    total: int = 0

    @property
    def class_names(self) -> list[str]:
        """Names of the categories in the order of the labels 1, 2, ..."""
        return list(self.categories.values())

    @property
    def category_ids(self) -> list[int]:
        """The categories' ids; label `k` stands for `category_ids[k - 1]`."""
        return list(self.categories)

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all(o.segmentation is not None for picture in self.pictures for o in picture.objects)

    def add(self, picture: AnnotatedPicture, where: str, **of_object: Any) -> None:
        """Take an object with a `box`, or note what is wrong with it; a box is cut to its picture."""
        problem = box_problem(of_object["box"], picture.height, picture.width)
        segmentation = of_object.get("segmentation")
        if problem is None and segmentation is not None:
            problem = mask_problem(segmentation, picture.height, picture.width)
        if problem is not None:
            self.faults.append(Fault(f"{where} of {picture.path.name}", problem))
            return
        x1, y1, x2, y2 = of_object["box"]
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(picture.width)), min(y2, float(picture.height)))
        if of_object.get("area") is None:
            of_object["area"] = (
                (box[2] - box[0]) * (box[3] - box[1])
                if segmentation is None
                else mask_area(segmentation, picture.height, picture.width)
            )
        if isinstance(segmentation, list):  # a quarter of the memory, of which each loader process has a copy
            of_object["segmentation"] = [array("d", polygon) for polygon in segmentation]
        picture.objects.append(AnnotatedObject(**{**of_object, "box": box}))

    def drop_missing(self, given: str) -> None:
        """Pass over the pictures that are not there.

        Args:
            given: The option that says where they are.

        Raises:
            InputError: If none is there.
        """
        held: dict[Path, set[str]] = {}
        for folder in {picture.path.parent for picture in self.pictures}:
            try:
                held[folder] = set(os.listdir(folder))  # noqa: PTH208 - names alone, for a hundred thousand files
            except OSError:
                held[folder] = set()
        missing = [picture for picture in self.pictures if picture.path.name not in held[picture.path.parent]]
        if missing and len(missing) == len(self.pictures):
            raise InputError(
                f"{self.source}: none of its {len(missing)} pictures is there, such as {missing[0].path}; {given}"
            )
        self.faults += [Fault(str(p.path), "a picture that is missing", max(1, len(p.objects))) for p in missing]
        gone = {picture.id for picture in missing}
        self.pictures = [picture for picture in self.pictures if picture.id not in gone]

    @property
    def fault_kinds(self) -> Counter[str]:
        """How many annotations were passed over for which kind of problem."""
        kinds: Counter[str] = Counter()
        for fault in self.faults:
            kinds[fault.kind] += fault.annotations
        return kinds

    def is_within(self, allowed: float) -> bool:
        """Whether at most a share `allowed` of the annotations was passed over."""
        return self.fault_kinds.total() <= allowed * max(self.total, len(self.pictures))

    def refuse_faults(self, allowed: float = 0.01) -> None:
        """Raise where more than a share `allowed` of the annotations was passed over.

        Raises:
            InputError: With the kinds of what is wrong, and the first place.
        """
        if self.is_within(allowed):
            return
        kinds = self.fault_kinds
        listed = ", ".join(f"{count} with {kind}" for kind, count in kinds.most_common(3))
        raise InputError(
            f"{self.source}: {kinds.total()} of {self.total} annotations cannot be used ({listed}), more than a share "
            f"of {allowed:g}, first {self.faults[0]}; patnet data check lists them: mend them, or raise --max_faults"
        )

    def as_coco(self) -> dict[str, Any]:
        """The contents in COCO's format, annotations numbered from 1, polygons as they were."""
        annotations = [
            {
                "image_id": picture.id,
                "category_id": o.category,
                "bbox": [o.box[0], o.box[1], o.box[2] - o.box[0], o.box[3] - o.box[1]],
                "area": o.area,
                "iscrowd": int(o.crowd),
                **({} if o.segmentation is None else {"segmentation": _as_json(o.segmentation)}),
            }
            for picture in self.pictures
            for o in picture.objects
        ]
        return {
            "images": [
                {"id": p.id, "file_name": p.path.name, "width": p.width, "height": p.height} for p in self.pictures
            ],
            "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
            "categories": [{"id": number, "name": name} for number, name in self.categories.items()],
        }


def _as_json(segmentation: Any) -> Any:
    return [list(polygon) for polygon in segmentation] if isinstance(segmentation, list) else segmentation


def box_problem(box: Sequence[Any], height: int, width: int) -> str | None:
    """What is wrong with a box `(x1, y1, x2, y2)` in a picture of `height` x `width` px, or None."""
    if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return "a box that is not four numbers"
    x1, y1, x2, y2 = box
    said = f"{x1:g}, {y1:g} to {x2:g}, {y2:g} in {width}x{height} px"
    if x2 < x1 or y2 < y1:
        return f"a box whose right or lower side comes before its left or upper one: {said}"
    if x2 == x1 or y2 == y1:
        return f"a box of no area: {said}"
    outside = x1 < -MARGIN or y1 < -MARGIN or x2 > width + MARGIN or y2 > height + MARGIN
    if outside or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return f"a box outside its picture: {said}"
    return None
