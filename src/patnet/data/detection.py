"""Images with boxes and masks, as detectors are trained on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..errors import InputError
from .annotations import AnnotatedImage, Annotations
from .coco import coco_file, read_coco
from .images import UnreadableImage, read_image
from .labelme import is_labelme, read_labelme
from .masks import decode_mask
from .voc import read_voc
from .yolo import is_yolo, read_yolo


def open_annotations(
    source: str | Path, images: str | Path | None = None, *, split: str | None = None, max_invalid: float | None = 0.01
) -> Annotations:
    """Read the annotations of a data set.

    Args:
        source: A file in COCO's format, a folder as COCO 2017 unpacks, or one in Pascal VOC's, YOLO's or LabelMe's
            format.
        images: The folder of the images, where it is not the usual one.
        split: Split of a folder, for example `train2017` or `train`.
        max_invalid: Share of the annotations that may be invalid and are left out; None for any.

    Raises:
        InputError: If it cannot be read, is in no such format, or more than `max_invalid` of it is invalid.
    """
    path = Path(source)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise InputError(f"--images {images}: no such folder")
    if path.is_file():
        if split is not None:
            raise InputError(f"{path}: is a file, which has no split {split!r}; leave one of them out")
        found = read_coco(path, folder)
    elif not path.is_dir():
        raise InputError(
            f"{path}: no such file or folder; give annotations in COCO's, Pascal VOC's, YOLO's or LabelMe's format"
        )
    elif (path / "Annotations").is_dir() or next(path.glob("*.xml"), None) is not None:
        found = read_voc(path, folder, split)
    elif is_yolo(path):
        found = read_yolo(path, folder, split)
    elif is_labelme(path):
        found = read_labelme(path, folder, split)
    else:
        found = read_coco(coco_file(path, split), folder)
    if not found.images:
        raise InputError(f"{found.source}: lists no images; there is nothing to use")
    if max_invalid is not None:
        found.require_valid(max_invalid)
    return found


def read_annotated_image(image: AnnotatedImage, mode: str = "RGB") -> Image.Image:
    """The image in the size that its annotations give; an EXIF rotation is undone where only that gives it.

    Raises:
        UnreadableImage: If it cannot be read, or has another size.
    """
    pixels = read_image(image.path, mode)
    size = (image.width, image.height)
    if pixels.size == size[::-1] != size:
        pixels = read_image(image.path, mode, upright=False)
    if pixels.size != size:
        raise UnreadableImage(
            image.path,
            f"is {pixels.width}x{pixels.height} px, but its annotations are for {image.width}x{image.height}; "
            "give the image that was annotated",
        )
    return pixels


class DetectionDataset(Dataset):
    """Images with their objects; items are `(PIL image, target)`, and loaders apply the transforms.

    `target` holds

    - `boxes`: `tv_tensors.BoundingBoxes` `(n, 4)`, x1, y1, x2, y2 in px;
    - `labels`: `(n,)`, 1 to K in the order of the categories' ids, see `category_ids`;
    - `masks`: `tv_tensors.Mask` `(n, H, W)`, 0 and 1, unless `masks` is false;
    - `image_id`: the image's id in the annotations;
    - `area`: `(n,)` in px² of the image as annotated, which no transform changes;
    - `iscrowd`: `(n,)`, 1 for crowd regions.

    Args:
        annotations: As `open_annotations` gives them.
        mode: `"RGB"` or `"L"`.
        masks: Whether to give masks; by default where every object has one.
        crowd: Whether to give crowd regions, which evaluation needs and training does not.

    Raises:
        InputError: If `masks` is true and an object has none.
    """

    def __init__(
        self, annotations: Annotations, *, mode: str = "RGB", masks: bool | None = None, crowd: bool = True
    ) -> None:
        self.annotations, self.mode, self.crowd = annotations, mode, crowd
        self.masks = annotations.has_masks if masks is None else masks
        if self.masks and not annotations.has_masks:
            where = next(i for i in annotations.images if any(o.segmentation is None for o in i.objects))
            raise InputError(
                f"{annotations.source}: an object of {where.path.name} has no mask; train a detector without masks"
            )
        self.class_names, self.category_ids = annotations.class_names, annotations.category_ids
        self._label = {category: label for label, category in enumerate(self.category_ids, start=1)}

    def __len__(self) -> int:
        return len(self.annotations.images)

    @property
    def ratios(self) -> list[float]:
        """Width over height of each image."""
        return [image.width / image.height for image in self.annotations.images]

    def target(self, index: int) -> dict[str, Any]:
        """The objects of an image."""
        image = self.annotations.images[index]
        objects = [o for o in image.objects if self.crowd or not o.crowd]
        size = (image.height, image.width)
        boxes = torch.tensor([o.box for o in objects], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([self._label[o.category] for o in objects], dtype=torch.int64),
            "image_id": image.id,
            "area": torch.tensor([o.area for o in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([int(o.crowd) for o in objects], dtype=torch.int64),
        }
        if self.masks:
            masks = np.zeros((len(objects), *size), np.uint8)
            for mask, o in zip(masks, objects, strict=True):
                mask[:] = decode_mask(o.segmentation, *size)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return target

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        return read_annotated_image(self.annotations.images[index], self.mode), self.target(index)


def detection_transform(hflip: float = 0.0, vflip: float = 0.0) -> Callable:
    """Convert the image of `(image, target)` to a tensor `(C, H, W)` in [0, 1], and flip both with these probabilities.

    The size stays as it is, because detectors resize by themselves.
    """
    flips = [v2.RandomHorizontalFlip(hflip), v2.RandomVerticalFlip(vflip)]
    return v2.Compose([v2.ToImage(), *flips, v2.ToDtype(torch.float32, scale=True)])
