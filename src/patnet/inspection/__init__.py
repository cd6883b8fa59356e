"""Looking inside a network: its gates, its attention, where it looks, and what its blocks pass on."""

from .figures import (
    attended_most,
    draw_answer,
    draw_attention,
    draw_channel_gates,
    draw_grad_cam,
    draw_shares,
    draw_sheet,
    draw_spatial_gates,
)
from .grad_cam import grad_cam
from .network import BlockShares, ChannelGates, Inspection, inspect_network
from .position import draw_position, position_maps

__all__ = [
    "BlockShares",
    "ChannelGates",
    "Inspection",
    "attended_most",
    "draw_answer",
    "draw_attention",
    "draw_channel_gates",
    "draw_grad_cam",
    "draw_position",
    "draw_shares",
    "draw_sheet",
    "draw_spatial_gates",
    "grad_cam",
    "inspect_network",
    "position_maps",
]
