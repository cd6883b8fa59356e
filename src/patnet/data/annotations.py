"""The contents of annotation files of any format: images, objects with boxes and masks, and what is invalid."""

import math
import os
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from .masks import MARGIN, mask_area, mask_problem

LEAST_SIDE = 0.01  # of a box in px; float32 rounds smaller ones to nothing


class AnnotatedObject(NamedTuple):
    """An object in an image: a tuple and not COCO's dictionary, since COCO has 860 000 of them.

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
        """The number of annotations left out, by problem without its numbers."""
        problems: Counter[str] = Counter()
        for fault in self.faults:
            problems[fault.problem.partition(":")[0]] += fault.annotations
        return problems

    @property
    def invalid_share(self) -> float:
        """The share of the annotations that is left out."""
        return self.invalid.total() / max(1, self.total, len(self.images))

    def require_valid(self, max_invalid: float) -> None:
        """Raise an `InputError` with the problems and the first place if a larger share is left out."""
        if self.invalid_share > max_invalid:
            listed = ", ".join(f"{count} with {problem}" for problem, count in self.invalid.most_common(3))
            raise InputError(
                f"{self.source}: {self.invalid.total()} of {self.total} annotations are invalid ({listed}), more than "
                f"a share of {max_invalid:g}, first {self.faults[0]}; patnet data check lists them: correct them, or "
                "raise --max-invalid"
            )

    def without(self, ids: Collection[int]) -> "Annotations":
        """The same without the images with these ids."""
        return replace(self, images=[image for image in self.images if image.id not in ids])

    def as_coco(self) -> dict[str, Any]:
        """The contents in COCO's format, annotations numbered from 1, polygons unchanged."""
        content: dict[str, Any] = {"images": [], "annotations": []}
        for image in self.images:
            size = {"width": image.width, "height": image.height}
            content["images"].append({"id": image.id, "file_name": image.path.name, **size})
            for o in image.objects:
                x, y, right, bottom = o.box
                row: dict[str, Any] = {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image.id,
                    "category_id": o.category,
                }
                row |= {"bbox": [x, y, right - x, bottom - y], "area": o.area, "iscrowd": int(o.crowd)}
                if o.segmentation is not None:
                    runs = isinstance(o.segmentation, dict)
                    row["segmentation"] = o.segmentation if runs else [list(polygon) for polygon in o.segmentation]
                content["annotations"].append(row)
        return {**content, "categories": [{"id": number, "name": name} for number, name in self.categories.items()]}


def split_folder(folder: Path, split: str | None) -> Path:
    """The folder of a split in `folder`, or `folder` itself for all, and for `train` where there is none.

    Raises:
        InputError: If there is none for another split, and `folder` is not called so itself.
    """
    if split is not None and (folder / split).is_dir():
        return folder / split
    if split in (None, "train", folder.name):
        return folder
    raise InputError(f"{folder}: has no split {split!r}; give a folder with {split}/, or leave the split out")


def annotations_of(
    source: Path, content: Mapping[str, list[Any]], folder: Path, places: Sequence[str] | None = None
) -> Annotations:
    """The valid part of contents in COCO's format, whose fields have the right types.

    The images are in `folder`; `places` are what messages call each annotation, by default its index.

    Raises:
        InputError: If none of the images exists.
    """
    rows = sorted(content["images"], key=lambda row: row["id"])
    images = {r["id"]: AnnotatedImage(r["id"], folder / r["file_name"], r["width"], r["height"]) for r in rows}
    categories = {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}
    faults: list[Fault] = []
    for i, row in enumerate(content["annotations"]):
        image, category = images.get(row["image_id"]), row["category_id"]
        where = places[i] if places else f"annotations[{i}]"
        if image is None:
            faults.append(Fault(where, f"an image that the file does not list: image_id {row['image_id']}"))
        elif category not in categories:
            faults.append(Fault(where, f"a category that the file does not list: category_id {category}"))
        elif problem := _object_problem(row, image.height, image.width):
            faults.append(Fault(f"{where} of {image.path.name}", problem))
        else:
            image.objects.append(_object(row, image.height, image.width))
    existing = _existing(source, list(images.values()), faults)
    return Annotations(source, categories, existing, faults, len(content["annotations"]))


def _object_problem(row: Mapping[str, Any], height: int, width: int) -> str | None:
    """What is wrong with an annotation of an image of `height` x `width` px, or None."""
    box = row["bbox"]
    if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return "a box that is not four numbers"
    x, y, across, down = box
    values = f"{x:g}, {y:g} to {x + across:g}, {y + down:g} in {width}x{height} px"
    if across < 0 or down < 0:
        return f"a box whose right or lower side comes before its left or upper one: {values}"
    if across == 0 or down == 0:
        return f"a box of no area: {values}"
    outside = min(x, y) < -MARGIN or x + across > width + MARGIN or y + down > height + MARGIN
    if outside or x >= width or y >= height or x + across <= 0 or y + down <= 0:
        return f"a box outside its image: {values}"
    if min(min(x + across, width) - max(x, 0), min(y + down, height) - max(y, 0)) < LEAST_SIDE:
        return f"a box of next to no area: {values}"
    return mask_problem(row["segmentation"], height, width) if row.get("segmentation") else None


def _object(row: Mapping[str, Any], height: int, width: int) -> AnnotatedObject:
    """The object of a valid annotation; the box is clipped to the image."""
    x, y, across, down = (float(v) for v in row["bbox"])
    box = (max(x, 0.0), max(y, 0.0), min(x + across, float(width)), min(y + down, float(height)))
    area, segmentation = row.get("area"), row.get("segmentation") or None
    if not isinstance(area, int | float) or not area > 0:
        area = (box[2] - box[0]) * (box[3] - box[1]) if segmentation is None else mask_area(segmentation, height, width)
    if isinstance(segmentation, list):  # a quarter of the memory, of which each loader worker has a copy
        segmentation = [array("d", polygon) for polygon in segmentation]
    return AnnotatedObject(row["category_id"], box, float(area), row.get("iscrowd") in (1, True), segmentation)


def _existing(source: Path, images: Sequence[AnnotatedImage], faults: list[Fault]) -> list[AnnotatedImage]:
    """The images whose files exist; the others are added to `faults`."""
    files: dict[Path, set[str]] = {}
    for folder in {image.path.parent for image in images}:
        try:
            files[folder] = set(os.listdir(folder))  # noqa: PTH208 - names alone, for a hundred thousand files
        except OSError:
            files[folder] = set()
    existing = [image for image in images if image.path.name in files[image.path.parent]]
    missing = [image for image in images if image.path.name not in files[image.path.parent]]
    if missing and not existing:
        raise InputError(
            f"{source}: none of its {len(missing)} images exists, such as {missing[0].path}; "
            "give their folder with --images"
        )
    faults += [Fault(str(i.path), "an image that is missing", max(1, len(i.objects))) for i in missing]
    return existing
