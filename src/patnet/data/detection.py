"""Pictures with boxes and masks, as detectors are trained on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..errors import InputError
from .annotations import AnnotatedPicture, Annotations
from .coco import coco_file, read_coco
from .images import read_image
from .masks import decode_mask
from .voc import read_voc

__all__ = ["DetectionPictures", "open_annotations", "read_as_annotated"]

# What undoes the turn that EXIF asks for, where it exchanges width and height.
UNTURN = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def open_annotations(
    source: str | Path, images: str | Path | None = None, *, split: str | None = None, max_faults: float | None = 0.01
) -> Annotations:
    """Read the annotations of a data set.

    Args:
        source: A file in COCO's format, a folder laid out as COCO 2017 unpacks, or one in Pascal VOC's format.
        images: The folder of the pictures, where it is not the usual one.
        split: Of a folder, for example `train2017` or `train`.
        max_faults: Share of the annotations that may be wrong and are passed over; None for any.

    Raises:
        InputError: If it cannot be read, is in no such format, or more than `max_faults` of it is wrong.
    """
    path = Path(source)
    pictures = None if images is None else Path(images)
    if pictures is not None and not pictures.is_dir():
        raise InputError(f"--images {images}: no such folder")
    if path.is_file():
        if split is not None:
            raise InputError(f"{path}: is a file, which has no split {split!r}; leave one of them out")
        found = read_coco(path, pictures)
    elif not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give annotations in COCO's or Pascal VOC's format")
    elif (path / "Annotations").is_dir() or next(path.glob("*.xml"), None) is not None:
        found = read_voc(path, pictures, split)
    else:
        found = read_coco(coco_file(path, split), pictures)
    if not found.pictures:
        raise InputError(f"{found.source}: names no pictures; there is nothing to use")
    if max_faults is not None:
        found.refuse_faults(max_faults)
    return found


def read_as_annotated(picture: AnnotatedPicture, mode: str = "RGB") -> Image.Image:
    """The picture in the size that its annotations say; EXIF's turn is undone where only that gives it.

    Raises:
        InputError: If it cannot be read, or is of another size.
    """
    image = read_image(picture.path, mode)
    said = (picture.width, picture.height)
    if image.size == said[::-1] and image.size != said:
        with Image.open(picture.path) as stored:
            turn = UNTURN.get(stored.getexif().get(0x0112, 1))
        image = image if turn is None else image.transpose(turn)
    if image.size != said:
        raise InputError(
            f"{picture.path}: is {image.width}x{image.height} px, but its annotations say "
            f"{picture.width}x{picture.height}; give the picture that was annotated"
        )
    return image


class DetectionPictures(Dataset):
    """Pictures with their objects, `(image, target)`.

    `image` is a `tv_tensors.Image` `(3, H, W)` of bytes. `target` holds

    - `boxes`: `tv_tensors.BoundingBoxes` `(n, 4)`, x1, y1, x2, y2 in px;
    - `labels`: `(n,)`, 1 to K in the order of the categories' ids, see `category_ids`;
    - `masks`: `tv_tensors.Mask` `(n, H, W)`, 0 and 1, unless `masks` is false;
    - `image_id`: the picture's id in the annotations;
    - `area`: `(n,)` in px² of the picture as annotated, which no transform changes;
    - `iscrowd`: `(n,)`, 1 for crowd regions.

    Args:
        annotations: As `open_annotations` gives them.
        transform: Of torchvision's transforms v2, takes and gives `(image, target)`.
        mode: `"RGB"` or `"L"`.
        masks: Whether to give masks; by default where every object has one.
        crowd: Whether to give crowd regions, which evaluation needs and training does not.

    Raises:
        InputError: If masks are asked for and an object has none.
    """

    def __init__(
        self,
        annotations: Annotations,
        transform: Callable | None = None,
        *,
        mode: str = "RGB",
        masks: bool | None = None,
        crowd: bool = True,
    ) -> None:
        self.annotations, self.transform, self.mode, self.crowd = annotations, transform, mode, crowd
        self.masks = annotations.has_masks if masks is None else masks
        if self.masks and not annotations.has_masks:
            where = next(p for p in annotations.pictures if any(o.segmentation is None for o in p.objects))
            raise InputError(
                f"{annotations.source}: an object of {where.path.name} has no mask; train a detector of boxes alone"
            )
        self.class_names, self.category_ids = annotations.class_names, annotations.category_ids
        self._label = {category: label for label, category in enumerate(self.category_ids, start=1)}

    def __len__(self) -> int:
        return len(self.annotations.pictures)

    @property
    def ratios(self) -> list[float]:
        """Width over height of each picture, to group them by."""
        return [picture.width / picture.height for picture in self.annotations.pictures]

    def picture(self, index: int) -> Image.Image:
        """The picture itself, before `transform`."""
        return read_as_annotated(self.annotations.pictures[index], self.mode)

    def target(self, index: int) -> dict[str, Any]:
        """What the picture shows, before `transform`."""
        picture = self.annotations.pictures[index]
        objects = [o for o in picture.objects if self.crowd or not o.crowd]
        size = (picture.height, picture.width)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4),
                format="XYXY",
                canvas_size=size,
            ),
            "labels": torch.tensor([self._label[o.category] for o in objects], dtype=torch.int64),
            "image_id": picture.id,
            "area": torch.tensor([o.area for o in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([int(o.crowd) for o in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = np.zeros((len(objects), *size), np.uint8)
            for mask, o in zip(masks, objects, strict=True):
                mask[:] = decode_mask(o.segmentation, *size)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return target

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, target = tv_tensors.Image(F.pil_to_tensor(self.picture(index))), self.target(index)
        return self.transform(image, target) if self.transform else (image, target)
