"""PATNet, a fast vision backbone: "Partial Convolution Meets Visual Attention" (arXiv 2503.03148).

Importing this package registers `patnet_t0` to `patnet_l` with timm.
"""

from typing import TYPE_CHECKING, Any

from . import models, nn
from .errors import InputError
from .models import PATNet, fuse, load_weights, save_checkpoint

if TYPE_CHECKING:
    from .deploy import export
    from .hub import push_to_hub
    from .loading import load

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "PATNet",
    "export",
    "fuse",
    "load",
    "load_weights",
    "models",
    "nn",
    "push_to_hub",
    "save_checkpoint",
]

# What is imported at its first use, because it needs more than the networks do, and from where.
_LAZY = {"export": "deploy", "load": "loading", "push_to_hub": "hub"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
