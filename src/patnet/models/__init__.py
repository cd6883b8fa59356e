"""The PATNet family, registered with timm, its checkpoints, and fusing for inference."""

from .checkpoint import Loaded, load_checkpoint, load_weights, save_checkpoint
from .fuse import fuse
from .network import ConvNorm, PATNet, Stage
from .patnet import patnet_l, patnet_m, patnet_s, patnet_t0, patnet_t1, patnet_t2
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
    "patnet_l",
    "patnet_m",
    "patnet_s",
    "patnet_t0",
    "patnet_t1",
    "patnet_t2",
    "read_checkpoint",
    "read_config",
    "read_tensors",
    "save_checkpoint",
    "stages_of",
]
