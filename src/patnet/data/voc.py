"""Pascal VOC's folders: an XML file for each image.

Read with code of our own: torchvision's `VOCDetection` reads only VOC's folders and splits, and its wrapper for
transforms v2 knows only VOC's 20 classes.
"""

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, parse

from ..errors import InputError
from ..files import read_lines
from .annotations import Annotations, annotations_of


def _parse(file: Path) -> Element:
    try:
        annotation = parse(file).getroot()
    except (OSError, ParseError) as error:
        raise InputError(f"{file}: not an XML file ({error}); give Pascal VOC's annotations") from error
    if annotation.tag != "annotation":
        raise InputError(f"{file}: not Pascal VOC's format, the field annotation is missing")
    return annotation


def _objects(annotation: Element) -> list[Element]:
    return [element for element in annotation.findall("object") if len(element)]


def _text(file: Path, element: Element, name: str) -> str:
    """The text at a path such as `size/width`."""
    text = (element.findtext(name) or "").strip()
    if not text:
        raise InputError(f"{file}: not Pascal VOC's format, the field {name} is missing")
    return text


def _number(file: Path, element: Element, name: str, least: float = -math.inf) -> float:
    text = _text(file, element, name)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        wanted = "a number" if least < 0 else f"a number of at least {least:g}"
        raise InputError(f"{file}: not Pascal VOC's format, the field {name} is {text!r}, not {wanted}")
    return number


def _split_files(root: Path, split: str | None) -> tuple[list[Path], set[str]]:
    """The annotation files, and the names of those in the split."""
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise InputError(f"{folder}: holds no .xml annotations; give a folder in Pascal VOC's format")
    names = {file.stem for file in files}
    lists = root / "ImageSets" / "Main"
    if split is None or (split == "train" and not lists.is_dir()):
        return files, names
    listed = lists / f"{split}.txt"
    if not listed.is_file():
        raise InputError(f"{listed}: no such split; leave it out for all images")
    # Lists of a class have a second column.
    chosen = {line if line in names else line.split()[0] for line in read_lines(listed)}
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
        split: A list of images in `ImageSets/Main`; None for all, as is `train` without that folder.

    Raises:
        InputError: If a file is not in VOC's format, naming the field, or there is no such split.
    """
    files, chosen = _split_files(root, split)
    parsed = [(file, _parse(file)) for file in files]
    names = sorted({_text(file, o, "name") for file, annotation in parsed for o in _objects(annotation)})
    if not names:
        raise InputError(f"{root}: none of its {len(files)} files has an object; there is nothing to train on")
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
    places = []
    for number, (file, annotation) in enumerate(parsed, start=1):
        if file.stem not in chosen:
            continue
        width, height = (int(_number(file, annotation, f"size/{side}", least=1)) for side in ("width", "height"))
        name = _text(file, annotation, "filename")
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for place, o in enumerate(_objects(annotation), start=1):
            x1, y1, x2, y2 = (_number(file, o, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (o.findtext("difficult") or "").strip() == "1"
            row: dict[str, Any] = {"image_id": number, "category_id": names.index(_text(file, o, "name")) + 1}
            row |= {"bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], "iscrowd": difficult}
            content["annotations"].append(row)
            places.append(f"object {place}")
    folder = images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else root)
    return annotations_of(root, content, folder, places)
