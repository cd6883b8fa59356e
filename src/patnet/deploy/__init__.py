"""From a trained network to one that is used: fusing, exporting, runtimes."""

from .export import FORMATS, Agreement, Exported, export, load_exported
from .fuse import fuse
from .info import ExportInfo
from .runtimes import RUNTIMES, prepare

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Agreement",
    "ExportInfo",
    "Exported",
    "export",
    "fuse",
    "load_exported",
    "prepare",
]
