"""Detection and instance segmentation: torchvision's detectors over the networks of patnet and timm."""

from .backbone import Backbone
from .build import DETECTORS, Detector, build
from .export import DetectionAgreement, export_onnx

__all__ = ["DETECTORS", "Backbone", "DetectionAgreement", "Detector", "build", "export_onnx"]
