"""COCO's annotation files, and its folders as they unpack."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .annotations import AnnotatedPicture, Annotations, Fault

__all__ = ["coco_file", "load_coco", "read_coco"]


def coco_file(root: Path, split: str | None = None) -> Path:
    """The annotation file of a split below a folder laid out as COCO: `annotations/instances_<split>[year].json`.

    Raises:
        InputError: If there is none, or several and `split` does not say which.
    """
    found = sorted((root / "annotations").glob("instances_*.json"))
    names = [file.stem.removeprefix("instances_") for file in found]
    if split is not None:
        chosen = [f for f, n in zip(found, names, strict=True) if n == split or n.rstrip("0123456789") == split]
        if len(chosen) == 1:
            return chosen[0]
        has = ", ".join(names) or "none"
        raise InputError(f"{root}: has no one split {split!r} in annotations/ ({has} there); give one of them")
    if len(found) != 1:
        said = f"has the splits {', '.join(names)}; give one" if found else "holds no annotations/instances_*.json"
        raise InputError(f"{root}: {said} or name the annotation file itself")
    return found[0]


def _pictures_folder(file: Path, first: str | None) -> Path:
    """Where the pictures of an annotation file are: COCO's `../<split>`, or beside it."""
    name = file.stem.removeprefix("instances_")
    places = [file.parent.parent / name, file.parent / "images", file.parent.parent / "images", file.parent]
    if first is not None:
        places = [place for place in [*places, file.parent.parent] if (place / first).is_file()] or places
    return next((place for place in places if place.is_dir()), file.parent)


def _field(file: Path, rows: list[Any], key: str, name: str, kind: type | tuple[type, ...], said: str) -> None:
    """Refuse a file in which the field `name` of some row is missing or of another type."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{file}: not COCO's format, {key}[{i}] is no object with fields; give an instances file")
        if name not in row:
            raise InputError(f"{file}: not COCO's format, {key}[{i}].{name} is missing; give an instances file")
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            raise InputError(f"{file}: not COCO's format, {key}[{i}].{name} is not {said}; give an instances file")


def load_coco(file: Path) -> dict[str, list[Any]]:
    """The file's contents, its fields of the types that they must have."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: the annotations cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error}); give COCO's annotations") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: not COCO's format, the fields images, annotations and categories are missing")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            problem = "is not a list" if key in content else "is missing"
            raise InputError(f"{file}: not COCO's format, the field {key} {problem}; give an instances file")
    for key, name, kind, said in (
        ("images", "id", int, "a whole number"),
        ("images", "file_name", str, "text"),
        ("images", "width", int, "a whole number"),
        ("images", "height", int, "a whole number"),
        ("categories", "id", int, "a whole number"),
        ("categories", "name", str, "text"),
        ("annotations", "image_id", int, "a whole number"),
        ("annotations", "category_id", int, "a whole number"),
        ("annotations", "bbox", list, "a list"),
    ):
        _field(file, content[key], key, name, kind, said)
    if not content["categories"]:
        raise InputError(f"{file}: the field categories is empty; name the classes there")
    for key in ("images", "categories"):
        ids: dict[int, int] = {}
        for i, row in enumerate(content[key]):
            if ids.setdefault(row["id"], i) != i:
                raise InputError(
                    f"{file}: not COCO's format, {key}[{i}].id is {row['id']}, as is {key}[{ids[row['id']]}].id"
                )
    for i, row in enumerate(content["images"]):
        if row["width"] < 1 or row["height"] < 1:
            raise InputError(f"{file}: images[{i}] is {row['width']}x{row['height']} px; give its width and height")
    return content


def read_coco(file: Path, images: Path | None = None) -> Annotations:
    """Read an annotation file in COCO's format, and look for its pictures.

    Args:
        file: For example `annotations/instances_val2017.json`.
        images: The folder of the pictures; by default where COCO unpacks them, or beside the file.

    Raises:
        InputError: If the file is not in COCO's format, naming the field, or none of its pictures is there.
    """
    content = load_coco(file)
    rows = sorted(content["images"], key=lambda row: row["id"])
    folder = images or _pictures_folder(file, rows[0]["file_name"] if rows else None)
    pictures = {r["id"]: AnnotatedPicture(r["id"], folder / r["file_name"], r["width"], r["height"]) for r in rows}
    categories = {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}
    found = Annotations(file, categories, list(pictures.values()), total=len(content["annotations"]))
    for i, row in enumerate(content["annotations"]):
        where = f"annotations[{i}]"
        if row["image_id"] not in pictures:
            found.faults.append(Fault(where, f"a picture that the file does not name: image_id {row['image_id']}"))
        elif row["category_id"] not in categories:
            found.faults.append(
                Fault(where, f"a category that the file does not name: category_id {row['category_id']}")
            )
        else:
            area = row.get("area")
            found.add(
                pictures[row["image_id"]],
                where,
                category=row["category_id"],
                box=_corners(row["bbox"]),
                area=float(area) if isinstance(area, int | float) and area > 0 else None,
                crowd=row.get("iscrowd") in (1, True),
                segmentation=row.get("segmentation") or None,
            )
    found.drop_missing("give their folder with --images")
    return found


def _corners(box: list[Any]) -> tuple[Any, ...]:
    """COCO's `[x, y, width, height]` as `(x1, y1, x2, y2)`; whatever else it is, as it is."""
    if len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return tuple(box)
    x, y, width, height = (float(v) for v in box)
    return x, y, x + width, y + height
