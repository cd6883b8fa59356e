"""PATNet, a fast vision backbone: "Partial Convolution Meets Visual Attention" (arXiv 2503.03148).

Importing this package registers `patnet_t0` to `patnet_l` with timm.
"""

from typing import TYPE_CHECKING, Any

from . import models, nn
from .deploy import fuse, load_exported
from .errors import InputError
from .models import PATNet, from_checkpoint, from_pretrained, load_weights, save_checkpoint

if TYPE_CHECKING:
    from .hub import push_to_hub

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "PATNet",
    "from_checkpoint",
    "from_pretrained",
    "fuse",
    "load_exported",
    "load_weights",
    "models",
    "nn",
    "push_to_hub",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "push_to_hub":  # what it takes of training is loaded when it is asked for
        from .hub import push_to_hub

        return push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
