"""Detection and instance segmentation: torchvision's detectors over the networks of patnet and timm."""

from .backbone import Backbone
from .build import DETECTORS, Detector, build
from .checkpoint import DetectorLoaded, load_detector, save_detector
from .export import DetectionAgreement, export_onnx

__all__ = [
    "DETECTORS",
    "Backbone",
    "DetectionAgreement",
    "Detector",
    "DetectorLoaded",
    "build",
    "export_onnx",
    "load_detector",
    "save_detector",
]
