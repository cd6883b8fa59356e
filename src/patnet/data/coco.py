"""COCO's annotation files, and its folders as COCO 2017 unpacks.

Read with code of our own: torchvision's `CocoDetection` stops at the first missing image, ignores EXIF orientations and
checks nothing, and its wrapper for transforms v2 gives no boxes for images without objects.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .annotations import Annotations, annotations_of

# The fields that each entry must have, with their types.
INTEGER, TEXT, LIST = (int, "an integer"), (str, "text"), (list, "a list")
FIELDS = {
    "images": {"id": INTEGER, "file_name": TEXT, "width": INTEGER, "height": INTEGER},
    "categories": {"id": INTEGER, "name": TEXT},
    "annotations": {"image_id": INTEGER, "category_id": INTEGER, "bbox": LIST},
}


def coco_file(root: Path, split: str | None = None) -> Path:
    """The annotation file of a split below a folder as COCO unpacks: `annotations/instances_<split>[year].json`.

    Raises:
        InputError: If there is none, or several and `split` does not say which.
    """
    files = {f.stem.removeprefix("instances_"): f for f in sorted((root / "annotations").glob("instances_*.json"))}
    chosen = [name for name in files if split in (None, name, name.rstrip("0123456789"))]
    if len(chosen) == 1:
        return files[chosen[0]]
    names = ", ".join(files)
    if split is not None:
        raise InputError(
            f"{root}: has no one split {split!r} in annotations/ ({names or 'none'} there); give one of them"
        )
    found = f"has the splits {names}; give one" if files else "holds no annotations/instances_*.json; give it"
    raise InputError(f"{root}: {found} or name the annotation file itself")


def load_coco(file: Path) -> dict[str, list[Any]]:
    """The file's contents, whose fields have the types that COCO's format requires.

    Raises:
        InputError: If the file cannot be read or is not in COCO's format, naming the field.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: the annotations cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error}); give COCO's annotations") from error
    if problem := _format_problem(content):
        raise InputError(f"{file}: not COCO's format, {problem}; give an instances file")
    return content


def _format_problem(content: Any) -> str | None:
    """The first field that is missing or wrong, or None."""
    if not isinstance(content, dict):
        return "the fields images, annotations and categories are missing"
    for key in FIELDS:
        if not isinstance(content.get(key), list):
            return f"the field {key} {'is not a list' if key in content else 'is missing'}"
    for key, fields in FIELDS.items():
        ids: dict[int, int] = {}
        for i, row in enumerate(content[key]):
            if not isinstance(row, dict):
                return f"{key}[{i}] has no fields"
            for name, (expected, description) in fields.items():
                if name not in row:
                    return f"{key}[{i}].{name} is missing"
                if not isinstance(row[name], expected) or isinstance(row[name], bool):
                    return f"{key}[{i}].{name} is not {description}"
            if "id" in fields and ids.setdefault(row["id"], i) != i:
                return f"{key}[{i}].id is {row['id']}, as is {key}[{ids[row['id']]}].id"
            if "width" in fields and min(row["width"], row["height"]) < 1:
                return f"{key}[{i}] is {row['width']}x{row['height']} px"
    return None if content["categories"] else "the field categories is empty"


def read_coco(file: Path, images: Path | None = None) -> Annotations:
    """Read an annotation file in COCO's format, and look for its images.

    They are in the folder `images`; by default where COCO unpacks them, `../<split>`, or in that of the file.

    Raises:
        InputError: If the file is not in COCO's format, naming the field, or none of its images exists.
    """
    content, parent = load_coco(file), file.parent
    if images is None:
        split = parent.parent / file.stem.removeprefix("instances_")
        places = [place for place in (split, parent / "images", parent.parent / "images", parent) if place.is_dir()]
        if content["images"]:
            first = min(content["images"], key=lambda row: row["id"])["file_name"]
            places = [place for place in (*places, parent.parent) if (place / first).is_file()] or places
        images = places[0]
    return annotations_of(file, content, images)
