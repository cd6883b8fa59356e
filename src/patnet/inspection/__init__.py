"""Inspection of a network: its gates, its attention, Grad-CAM, and what its blocks change."""

from .figures import PANELS, View, draw
from .grad_cam import grad_cam
from .hooks import Hook, Layer, find_layers, hooked, image_batches
from .maps import LIMIT, Position, most_attended, overlay, pixels_of, position_at
from .network import BlockShares, ChannelGates, Inspection, inspect_network
from .position import draw_position, position_maps

__all__ = [
    "LIMIT",
    "PANELS",
    "BlockShares",
    "ChannelGates",
    "Hook",
    "Inspection",
    "Layer",
    "Position",
    "View",
    "draw",
    "draw_position",
    "find_layers",
    "grad_cam",
    "hooked",
    "image_batches",
    "inspect_network",
    "most_attended",
    "overlay",
    "pixels_of",
    "position_at",
    "position_maps",
]
