"""PATNet, a fast vision backbone: "Partial Convolution Meets Visual Attention" (arXiv 2503.03148).

Importing this package registers `patnet_t0` to `patnet_l` with timm.
"""

from . import models, nn
from .deploy import fuse, load_exported
from .errors import InputError
from .models import PATNet, from_checkpoint, load_weights, save_checkpoint

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "PATNet",
    "from_checkpoint",
    "fuse",
    "load_exported",
    "load_weights",
    "models",
    "nn",
    "save_checkpoint",
]
