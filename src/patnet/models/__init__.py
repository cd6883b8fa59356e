"""The PATNet family, registered with timm, its checkpoints, and fusing for inference."""

from . import patnet  # noqa: F401  # registers the variants
from .checkpoint import Loaded, load_checkpoint, load_weights, save_checkpoint
from .fuse import fuse
from .network import ConvNorm, PATNet, Stage
from .published import PUBLISHED
from .reading import UnsafeCheckpoint, find_weights, read_checkpoint, read_config, read_tensors
from .stages import stages_of

__all__ = [
    "PUBLISHED",
    "ConvNorm",
    "Loaded",
    "PATNet",
    "Stage",
    "UnsafeCheckpoint",
    "find_weights",
    "fuse",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_config",
    "read_tensors",
    "save_checkpoint",
    "stages_of",
]
