"""Interleaved measurements of models, backends and precisions, as `patnet bench` makes them."""

from .measure import FAMILY, MEMORY_FORMATS, Options, measure
from .networks import build, count, fold_norms
from .report import describe_machine, machine, markdown_table, to_markdown, write
from .timing import Timing, interleave, ratio, use_threads

__all__ = [
    "FAMILY",
    "MEMORY_FORMATS",
    "Options",
    "Timing",
    "build",
    "count",
    "describe_machine",
    "fold_norms",
    "interleave",
    "machine",
    "markdown_table",
    "measure",
    "ratio",
    "to_markdown",
    "use_threads",
    "write",
]
