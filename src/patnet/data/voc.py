"""Pascal VOC's folders: an XML file for each picture."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, parse

from torchvision.datasets import VOCDetection

from ..errors import InputError
from .annotations import AnnotatedPicture, Annotations

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


def _number(file: Path, fields: Any, name: str) -> float:
    text = _text(file, fields, name)
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{file}: not Pascal VOC's format, the field {name} is {text!r}, not a number") from error


def read_voc(root: Path, images: Path | None = None, split: str | None = None) -> Annotations:
    """Read a folder in Pascal VOC's format, and look for its pictures.

    Classes are numbered from 1 in the order of their names, over all splits. VOC counts pixels from 1: boxes become
    `(xmin - 1, ymin - 1, xmax, ymax)`. Objects marked difficult, which VOC's evaluation passes over, are crowds here.

    Args:
        root: Has `Annotations/*.xml`, `JPEGImages/` and perhaps `ImageSets/Main/<split>.txt`; or XML files beside
            their pictures.
        images: The folder of the pictures, where it is another.
        split: A list of pictures in `ImageSets/Main`; None for all.

    Raises:
        InputError: If a file is not in VOC's format, naming the field, or there is no such split.
    """
    laid_out = (root / "Annotations").is_dir()
    folder = root / "Annotations" if laid_out else root
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"{folder}: holds no .xml annotations; give a folder in Pascal VOC's format")
    chosen = {file.stem for file in files}
    if split is not None:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise InputError(f"{listed}: no such split; leave it out for all pictures")
        chosen = {line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()}
        if missing := sorted(chosen - {file.stem for file in files}):
            raise InputError(f"{listed}: names {missing[0]}, which has no {folder / missing[0]}.xml")
    parsed = [(file, _parse(file)) for file in files]
    objects = {file: [o for o in annotation.get("object", []) if o] for file, annotation in parsed}
    names = sorted({_text(file, o, "name") for file, held in objects.items() for o in held})
    if not names:
        raise InputError(f"{folder}: none of its {len(files)} files has an object; there is nothing to learn")
    numbers = {name: number for number, name in enumerate(names, start=1)}
    found = Annotations(root, {number: name for name, number in numbers.items()}, [])
    pictures = images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else root)
    for number, (file, annotation) in enumerate(parsed, start=1):
        if file.stem not in chosen:
            continue
        picture = AnnotatedPicture(
            number,
            pictures / _text(file, annotation, "filename"),
            int(_number(file, annotation, "size/width")),
            int(_number(file, annotation, "size/height")),
        )
        found.pictures.append(picture)
        for i, one in enumerate(objects[file]):
            found.total += 1
            x1, y1, x2, y2 = (_number(file, one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
            if x2 >= x1 and y2 >= y1:
                x1, y1 = x1 - 1, y1 - 1
            found.add(
                picture,
                f"object {i + 1}",
                category=numbers[_text(file, one, "name")],
                box=(x1, y1, x2, y2),
                crowd=one.get("difficult") == "1",
            )
    found.drop_missing("give their folder with --images")
    return found
