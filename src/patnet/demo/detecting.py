"""What a detector finds in one picture."""

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2 import functional as F

from ..data import as_seen
from ..detection.checkpoint import load_detector
from ..detection.drawing import draw_detections
from ..detection.predict import objects_in

__all__ = ["Detecting", "Found"]

LONGEST = 1600  # px, to which larger pictures are reduced: what is drawn is no larger


@dataclass(frozen=True)
class Found:
    """The objects in a picture, as `patnet.detection.predict` gives them, and the drawing of them."""

    objects: list[dict[str, Any]]
    drawing: Figure


class Detecting:
    """A trained detector, ready to answer.

    Args:
        path: A run folder of `patnet detect train`, or a directory with a detector.

    Raises:
        InputError: If there is no such checkpoint, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.trained = load_detector(path)

    def reduced(self, picture: Image.Image) -> Image.Image:
        """A picture as the detector takes it, no larger than it is drawn."""
        picture = as_seen(picture, self.trained.mode)
        picture.thumbnail((LONGEST, LONGEST))
        return picture

    @torch.inference_mode()
    def find(self, picture: Image.Image, min_score: float = 0.5) -> Found:
        """The objects with a score above `min_score`, in what `reduced` made of a picture."""
        model = self.trained.model
        # What is below goes before its mask is spread over the whole picture, which takes the memory.
        getattr(model, "roi_heads", model).score_thresh = min_score
        found = model([F.pil_to_tensor(picture) / 255])[0]
        objects = objects_in(found, self.trained.class_names, self.trained.category_ids)
        return Found(
            objects, draw_detections(picture, objects, found["labels"].tolist(), f"no score above {min_score:g}")
        )
