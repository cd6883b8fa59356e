"""LabelMe's folders: a JSON file for each image, next to it."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .annotations import Annotations, Fault, annotations_of, split_folder

__all__ = ["is_labelme", "read_labelme"]

# The numbers of points of a shape that is read, at least; others have no area.
SHAPES = {"polygon": 3, "rectangle": 2, "circle": 2}


def _files(root: Path, split: str | None) -> list[Path]:
    return sorted(split_folder(root, split).glob("*.json"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error}); give LabelMe's annotations") from error
    for name, wanted in (("shapes", list), ("imagePath", str), ("imageWidth", int), ("imageHeight", int)):
        if not isinstance(content, dict) or not isinstance(content.get(name), wanted):
            raise InputError(f"{file}: not LabelMe's format, the field {name} is missing or no {wanted.__name__}")
    return content


def is_labelme(root: Path) -> bool:
    """Whether the first JSON file of a folder, or of its train/, is LabelMe's."""
    first = next(iter([*_files(root, None), *_files(root, "train")]), None)
    return first is not None and b'"shapes"' in first.read_bytes()


def _box(shape: Any, width: int, height: int) -> tuple[list[float], list[list[float]] | None] | str:
    """The box `[x, y, w, h]` and the polygon of a shape; or what is wrong with it."""
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind not in SHAPES:
        return f"a shape without an area: {kind}"
    try:
        xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    except (TypeError, ValueError):
        return "a shape whose points are not pairs of numbers"
    if len(xs) < SHAPES[kind]:
        return f"a {kind} of too few points: {len(xs)}"
    if kind == "circle":
        radius = ((xs[1] - xs[0]) ** 2 + (ys[1] - ys[0]) ** 2) ** 0.5
        xs, ys = [xs[0] - radius, xs[0] + radius], [ys[0] - radius, ys[0] + radius]
    left, top, right, bottom = max(min(xs), 0), max(min(ys), 0), min(max(xs), width), min(max(ys), height)
    polygon = [[value for point in zip(xs, ys, strict=True) for value in point]] if kind == "polygon" else None
    return [left, top, right - left, bottom - top], polygon


def read_labelme(root: Path, images: Path | None = None, split: str | None = None) -> Annotations:
    """Read a folder of LabelMe's JSON files: polygons, rectangles and circles.

    Classes are numbered from 1 in the order of their names, over all splits.

    Args:
        root: Has the files, or `train/` and others with files.
        images: The folder of the images, where they are not next to the files.
        split: A folder in `root`; None for the files in `root` itself.

    Raises:
        InputError: If a file is not in LabelMe's format, naming the field, or there is no such split.
    """
    files = _files(root, split)
    if not files:
        raise InputError(f"{root}: holds no LabelMe files{'' if split is None else f' for the split {split!r}'}")
    contents = {file: _read(file) for file in files}
    elsewhere = [_read(file) for file in sorted(root.glob("*/*.json")) if file not in contents] if split else []
    shapes = [s for content in [*contents.values(), *elsewhere] for s in content["shapes"] if isinstance(s, dict)]
    names = sorted({str(shape.get("label")) for shape in shapes})
    if not names:
        raise InputError(f"{root}: none of its {len(files)} files has a shape; there is nothing to train on")
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    faults, places = [], []
    for number, (file, found) in enumerate(contents.items(), start=1):
        size = {"width": found["imageWidth"], "height": found["imageHeight"]}
        name = Path(found["imagePath"].replace("\\", "/")).name
        content["images"].append({"id": number, "file_name": name, **size})
        for place, shape in enumerate(found["shapes"]):
            where = f"{file}: shapes[{place}]"
            box = _box(shape, *size.values()) if isinstance(shape, dict) else "a shape without fields"
            if isinstance(box, str):
                faults.append(Fault(where, box))
                continue
            category = names.index(str(shape.get("label"))) + 1
            row = {"image_id": number, "category_id": category, "bbox": box[0], "segmentation": box[1]}
            content["annotations"].append(row)
            places.append(where)
    read = annotations_of(root, content, images or files[0].parent, places)
    return Annotations(read.source, read.categories, read.images, [*faults, *read.faults], read.total + len(faults))
