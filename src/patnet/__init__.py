"""PATNet, a fast vision backbone: "Partial Convolution Meets Visual Attention" (arXiv 2503.03148).

Importing this package registers `patnet_t0` to `patnet_l` with timm.
"""

from . import models, nn
from .models import PATNet

__version__ = "0.1.0"
__all__ = ["PATNet", "models", "nn"]
