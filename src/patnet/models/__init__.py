"""The PATNet family, registered with timm, its checkpoints, and fusing for inference."""

from .checkpoint import (
    Loaded,
    UnsafeCheckpoint,
    find_weights,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    read_config,
    read_tensors,
    save_checkpoint,
)
from .fuse import fuse
from .patnet import ConvNorm, PATNet, Stage
from .published import PUBLISHED
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
