"""The PATNet family, registered with timm."""

from .patnet import PATNet

__all__ = ["PATNet"]
