"""The PATNet family, registered with timm, its checkpoints, and fusing for inference."""

from . import patnet  # noqa: F401  # registers the variants
from .checkpoint import Loaded, load_checkpoint, load_weights, save_checkpoint
from .fuse import fuse
from .hub import HUB, hub_name
from .network import ConvNorm, PATNet, Stage
from .packaged import PACKAGED
from .published import PUBLISHED
from .reading import UnsafeCheckpoint, find_weights, read_checkpoint, read_config, read_tensors
from .stages import classifier_names, first_convolutions, input_channels, of_channels, preprocessing_of, stages_of
from .threshold import Threshold, save_threshold

__all__ = [
    "HUB",
    "PACKAGED",
    "PUBLISHED",
    "ConvNorm",
    "Loaded",
    "PATNet",
    "Stage",
    "Threshold",
    "UnsafeCheckpoint",
    "classifier_names",
    "find_weights",
    "first_convolutions",
    "fuse",
    "hub_name",
    "input_channels",
    "load_checkpoint",
    "load_weights",
    "of_channels",
    "preprocessing_of",
    "read_checkpoint",
    "read_config",
    "read_tensors",
    "save_checkpoint",
    "save_threshold",
    "stages_of",
]
