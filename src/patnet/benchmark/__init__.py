"""Speed: latency, throughput and memory of models, forms, runtimes and precisions, compared in turns."""

from .candidates import Options
from .run import measure
from .write import redraw, write

__all__ = ["Options", "measure", "redraw", "write"]
