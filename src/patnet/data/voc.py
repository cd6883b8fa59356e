"""Pascal VOC's folders: an XML file for each image.

`torchvision.datasets.VOCDetection` parses the files. The rest is our own, since it reads only VOC's folders and splits,
and its wrapper for transforms v2 knows only VOC's 20 classes.
"""

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, parse

from torchvision.datasets import VOCDetection

from ..errors import InputError
from .annotations import Annotations, annotations_of

__all__ = ["read_voc"]


def _parse(file: Path) -> dict[str, Any]:
    """The annotation in a file, as torchvision's reader gives it."""
    try:
        found = VOCDetection.parse_voc_xml(parse(file).getroot())
    except (OSError, ParseError) as error:
        raise InputError(f"{file}: not an XML file ({error}); give Pascal VOC's annotations") from error
    annotation = found.get("annotation")
    if not isinstance(annotation, dict):
        raise InputError(f"{file}: not Pascal VOC's format, the field annotation is missing")
    return annotation


def _text(file: Path, fields: Any, name: str) -> str:
    """The text at a path of fields such as `size/width`."""
    for part in name.split("/"):
        fields = fields.get(part) if isinstance(fields, dict) else None
    if not isinstance(fields, str) or not fields:
        raise InputError(f"{file}: not Pascal VOC's format, the field {name} is missing")
    return fields


def _number(file: Path, fields: Any, name: str, least: float = -math.inf) -> float:
    text = _text(file, fields, name)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        wanted = "a number" if least < 0 else f"a number of at least {least:g}"
        raise InputError(f"{file}: not Pascal VOC's format, the field {name} is {text!r}, not {wanted}")
    return number


def _box(file: Path, fields: Any) -> list[float]:
    """VOC's box in COCO's form."""
    x1, y1, x2, y2 = (_number(file, fields, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    return [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


def _split_files(root: Path, split: str | None) -> tuple[list[Path], set[str]]:
    """The annotation files, and the names of those in the split."""
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"{folder}: holds no .xml annotations; give a folder in Pascal VOC's format")
    names = {file.stem for file in files}
    if split is None:
        return files, names
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise InputError(f"{listed}: no such split; leave it out for all images")
    chosen = {line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
    if missing := sorted(chosen - names):
        raise InputError(f"{listed}: lists {missing[0]}, which has no {folder / missing[0]}.xml")
    return files, chosen


def read_voc(root: Path, images: Path | None = None, split: str | None = None) -> Annotations:
    """Read a folder in Pascal VOC's format, and look for its images.

    Classes are numbered from 1 in the order of their names, over all splits. VOC counts pixels from 1: boxes become
    `(xmin - 1, ymin - 1, xmax, ymax)`. Objects marked difficult, which VOC's evaluation ignores, are crowds here.

    Args:
        root: Has `Annotations/*.xml`, `JPEGImages/` and perhaps `ImageSets/Main/<split>.txt`; or XML files in the
            folder of their images.
        images: The folder of the images, where it is another.
        split: A list of images in `ImageSets/Main`; None for all.

    Raises:
        InputError: If a file is not in VOC's format, naming the field, or there is no such split.
    """
    files, chosen = _split_files(root, split)
    parsed = [(file, _parse(file)) for file in files]
    objects = [
        (number, file, place, fields)
        for number, (file, annotation) in enumerate(parsed, start=1)
        for place, fields in enumerate(annotation.get("object", []), start=1)
        if fields
    ]
    names = sorted({_text(file, o, "name") for _, file, _, o in objects})
    if not names:
        raise InputError(f"{root}: none of its {len(files)} files has an object; there is nothing to train on")
    used = [entry for entry in objects if entry[1].stem in chosen]
    content: dict[str, list[Any]] = {
        "images": [
            {
                "id": number,
                "file_name": _text(file, annotation, "filename"),
                "width": int(_number(file, annotation, "size/width", least=1)),
                "height": int(_number(file, annotation, "size/height", least=1)),
            }
            for number, (file, annotation) in enumerate(parsed, start=1)
            if file.stem in chosen
        ],
        "annotations": [
            {
                "image_id": number,
                "category_id": names.index(_text(file, fields, "name")) + 1,
                "bbox": _box(file, fields),
                "iscrowd": int(fields.get("difficult") == "1"),
            }
            for number, file, _, fields in used
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    folder = images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else root)
    return annotations_of(root, content, folder, [f"object {place}" for _, _, place, _ in used])
