"""YOLO's folders, as Ultralytics' tools write them: a text file for each image, and `data.yaml` with the names.

Read with code of our own: supervision's reader takes OpenCV, stops at the first faulty line, and reads no image without
a text file.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..files import read_lines
from .annotations import Annotations, Fault, annotations_of, split_folder
from .images import UnreadableImage, find_images, image_size

__all__ = ["is_yolo", "read_yolo"]

NAMES = ("data.yaml", "data.yml", "dataset.yaml")
MARGIN = 1e-3  # by which a coordinate may exceed [0, 1], from rounding


def _data_file(root: Path) -> Path | None:
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def is_yolo(root: Path) -> bool:
    """Whether a folder is in YOLO's format."""
    return _data_file(root) is not None or (root / "classes.txt").is_file() or (root / "labels").is_dir()


def _read_names(root: Path) -> list[str]:
    """The names of the classes, from `data.yaml` or `classes.txt`."""
    file = _data_file(root)
    if file is None:
        file = root / "classes.txt"
        if not file.is_file():
            raise InputError(f"{root}: holds neither data.yaml nor classes.txt; give the names of the classes there")
        names: Any = read_lines(file)
    else:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from error
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: has no names; list the classes as names: [cat, dog]")
    return [str(name) for name in names]


def _image_folders(root: Path, images: Path | None, split: str | None) -> list[Path]:
    """The folders of images: `images/SPLIT` or `SPLIT/images`, and those of all splits without one."""
    if images is not None:
        return [split_folder(images, split)]
    splits = [split] if split is not None else ["train", "val", "valid", "test"]
    found = [f for name in splits for f in (root / "images" / name, root / name / "images") if f.is_dir()]
    if not found and (root / "images").is_dir():
        found = [split_folder(root / "images", split)]
    if not found:
        named = "" if split is None else f" for the split {split!r}"
        raise InputError(f"{root}: has no folder of images{named}; give images/{split or 'train'}/ or {split}/images/")
    return found


def _label_file(image: Path) -> Path:
    """The text file of an image, where `images` becomes `labels` in its path, or else next to it as of LabelImg."""
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    file = Path(*parts)
    return file if file.is_file() else beside


def _objects(line: str, classes: int, width: int, height: int) -> dict[str, Any] | str:
    """The object of a line, `class x y w h` or `class x1 y1 x2 y2 ...` in shares of the image; or what is wrong."""
    try:
        number, *values = [float(word) for word in line.split()]
    except ValueError:
        return f"a line that is not numbers: {line.strip()[:40]!r}"
    if not 0 <= number < classes or number != int(number):  # NaN is in no range
        return f"a class that is not one of the names: {number:g}, and there are {classes}, from 0"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"a line that is neither a box nor a polygon: {1 + len(values)} numbers"
    segmentation = None
    if len(values) == 4:
        x, y, w, h = values
        edges = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        edges = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        sides = (width, height) * (len(values) // 2)
        segmentation = [[value * side for value, side in zip(values, sides, strict=True)]]
    if not (min(edges) >= -MARGIN and max(edges) <= 1 + MARGIN):
        return f"a box outside [0, 1]: {' '.join(f'{edge:g}' for edge in edges)}"
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in edges)
    box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
    return {"category_id": int(number) + 1, "bbox": box, "segmentation": segmentation}


def _lines(image: Path) -> Iterator[tuple[str, str]]:
    file = _label_file(image)
    if file.is_file():  # without one the image has no objects
        for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if line.strip():
                yield f"{file}:{number}", line


def read_yolo(root: Path, images: Path | None = None, split: str | None = None) -> Annotations:
    """Read a folder in YOLO's format: boxes, and polygons of segmentation.

    The ids of the categories are those of YOLO plus 1.

    Args:
        root: Has `data.yaml` or `classes.txt`, and `images/train/` with `labels/train/`, or `train/images/` with
            `train/labels/`, or `images/` with `labels/`; a text file may also be next to its image.
        images: The folder of the images, or of a folder for each split; the text files are in the folder of the same
            path with `labels` for `images`, or next to them.
        split: Such as `train` or `val`; None for all.

    Raises:
        InputError: If there are no names or no images.
    """
    names = _read_names(root)
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    faults, places = [], []
    for file in find_images([str(folder) for folder in _image_folders(root, images, split)]):
        try:
            width, height = image_size(file)
        except UnreadableImage as error:
            faults.append(Fault(str(file), f"an image that cannot be read: {error.reason}"))
            continue
        number = len(content["images"]) + 1
        content["images"].append({"id": number, "file_name": str(file.resolve()), "width": width, "height": height})
        for where, line in _lines(file):
            found = _objects(line, len(names), width, height)
            if isinstance(found, str):
                faults.append(Fault(where, found))
            else:
                content["annotations"].append({"image_id": number, **found})
                places.append(where)
    read = annotations_of(root, content, root, places)
    return replace(read, faults=[*faults, *read.faults], total=read.total + len(faults))
