"""A detector on the page: the objects in one image, and their drawing."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..data import convert_image
from ..detection import DetectorLoaded
from ..detection.drawing import draw_detections
from ..detection.predict import objects_in

__all__ = ["draw_objects", "find_objects", "reduced"]

MAX_SIDE = 1000  # px, to which larger images are reduced: the masks of a hundred objects then take 400 MB


def reduced(loaded: DetectorLoaded, image: Image.Image) -> Image.Image:
    """An image in the mode of the detector, at most `MAX_SIDE` px on a side."""
    image = convert_image(image, loaded.mode)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


@torch.inference_mode()
def find_objects(loaded: DetectorLoaded, image: Image.Image) -> list[dict[str, Any]]:
    """The objects in an image that `reduced` gave, as `patnet.detection.predict` gives them."""
    found = loaded.model([F.pil_to_tensor(image) / 255])[0]
    return objects_in(found, loaded.class_names, loaded.category_ids)


def draw_objects(loaded: DetectorLoaded, image: Image.Image, objects: Sequence[dict[str, Any]]) -> Figure:
    """The image with boxes and masks."""
    labels = [1 + loaded.class_names.index(found["label"]) for found in objects]
    return draw_detections(image, objects, labels, "nothing found")
