"""The blocks of PATNet, each usable in any network of `(N, C, H, W)` maps."""

from .block import MIXERS, MLP, Mixer, MixerOptions, PATBlock, PATResidualBlock
from .channel_attention import CHANNEL_ATTENTIONS, GaussianChannelAttention
from .norm import BatchNorm2d
from .partial_conv import PConv
from .pat_ch import PAT_ch
from .pat_sf import PAT_sf
from .pat_sp import SPATIAL_ATTENTIONS, PAT_sp
from .relative_position import RelativePosition

__all__ = [
    "CHANNEL_ATTENTIONS",
    "MIXERS",
    "MLP",
    "SPATIAL_ATTENTIONS",
    "BatchNorm2d",
    "GaussianChannelAttention",
    "Mixer",
    "MixerOptions",
    "PATBlock",
    "PATResidualBlock",
    "PAT_ch",
    "PAT_sf",
    "PAT_sp",
    "PConv",
    "RelativePosition",
]
