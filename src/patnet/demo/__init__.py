"""The networks in a browser: a picture's classes and what led to them, two models' speed, what a detector finds."""

from .server import serve

__all__ = ["serve"]
