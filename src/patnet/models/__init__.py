"""The PATNet family, registered with timm, and its checkpoints."""

from .checkpoint import from_checkpoint, from_pretrained, load_weights, save_checkpoint
from .patnet import PATNet

__all__ = ["PATNet", "from_checkpoint", "from_pretrained", "load_weights", "save_checkpoint"]
