"""Detection and instance segmentation: torchvision's detectors over the networks of patnet and timm.

Anchors, heads and thresholds are those of mmdetection's Mask R-CNN, Faster R-CNN and RetinaNet with ResNet-50 on COCO,
from which the authors' configuration derives: anchors of 32 to 512 px at strides 4 to 64 (RetinaNet: 8 to 128, with
three scales per octave) and aspect ratios 0.5, 1 and 2. Three things for which torchvision has no argument differ: the
R-CNNs' box loss is smooth L1, not L1; anchors are rounded to integers; RoIAlign does not shift regions by half a pixel.
"""

from .backbone import Backbone
from .build import DETECTORS, Detector, build
from .checkpoint import DetectorLoaded, load_detector, save_detector
from .export import DetectionAgreement, export_detector

__all__ = [
    "DETECTORS",
    "Backbone",
    "DetectionAgreement",
    "Detector",
    "DetectorLoaded",
    "build",
    "export_detector",
    "load_detector",
    "save_detector",
]
