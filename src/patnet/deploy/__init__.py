"""From a trained network to one that is used: fusing."""

from .fuse import fuse

__all__ = ["fuse"]
