"""Looking inside a network: its gates, its attention, where it looks, and what its blocks pass on."""

from .grad_cam import grad_cam
from .network import BlockShares, ChannelGates, Inspection, inspect_network

__all__ = ["BlockShares", "ChannelGates", "Inspection", "grad_cam", "inspect_network"]
