"""A page in the browser: the classes of an image with gates and attention, and the objects that a detector finds."""

from .server import serve

__all__ = ["serve"]
