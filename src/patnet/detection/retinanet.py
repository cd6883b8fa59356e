"""RetinaNet with the labels of the other detectors."""

import torch
from torch import Tensor
from torchvision.models import detection

__all__ = ["RetinaNet"]


class RetinaNet(detection.RetinaNet):
    """torchvision's RetinaNet, except that classes are labelled from 1.

    torchvision's takes labels from 0, while its R-CNNs keep 0 for the background. Here all take 1 to `num_classes`,
    and no output is spent on a background that a network of sigmoids does not need.
    """

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Losses by name, as torchvision's.

        Raises:
            ValueError: If a label is not one of the classes; torchvision would take 0 for the last one.
        """
        labels = torch.cat([target["labels"] for target in targets])
        classes = self.head.classification_head.num_classes
        if ((labels < 1) | (labels > classes)).any():
            raise ValueError(f"a label is {labels.min()} or {labels.max()}: labels must lie in 1 to {classes}")
        from_zero = [{**target, "labels": target["labels"] - 1} for target in targets]
        return super().compute_loss(from_zero, head_outputs, anchors)

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores and labels of each picture, as torchvision's."""
        detections = super().postprocess_detections(head_outputs, anchors, image_shapes)
        return [{**found, "labels": found["labels"] + 1} for found in detections]
