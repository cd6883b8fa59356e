"""Detection and instance segmentation: torchvision's detectors over the networks of patnet and timm."""

from .backbone import Backbone
from .build import DETECTORS, Detector, build

__all__ = ["DETECTORS", "Backbone", "Detector", "build"]
