"""The blocks of PATNet, each usable in any network of `(N, C, H, W)` maps."""

from .attention_frame import FullAttention, PartialAttention
from .block import MIXERS, MLP, Mixer, MixerOptions, PATBlock, PATResidualBlock
from .channel_attention import (
    CHANNEL_ATTENTIONS,
    GaussianChannelAttention,
    MeanChannelAttention,
    QuantileChannelAttention,
)
from .gct import GCT
from .large_kernel_attention import LargeKernelAttention
from .linear_attention import LinearAttention
from .norm import BatchNorm2d
from .partial_conv import PConv
from .pat_ch import Full_ch, PAT_ch
from .pat_sf import Full_sf, PAT_sf
from .pat_sp import PAT_sp
from .relative_position import RelativePosition
from .spatial_attention import SPATIAL_ATTENTIONS, Full_sp, PAT_cbam
from .srm import SRM
from .window_attention import WindowAttention

__all__ = [
    "CHANNEL_ATTENTIONS",
    "GCT",
    "MIXERS",
    "MLP",
    "SPATIAL_ATTENTIONS",
    "SRM",
    "BatchNorm2d",
    "FullAttention",
    "Full_ch",
    "Full_sf",
    "Full_sp",
    "GaussianChannelAttention",
    "LargeKernelAttention",
    "LinearAttention",
    "MeanChannelAttention",
    "Mixer",
    "MixerOptions",
    "PATBlock",
    "PATResidualBlock",
    "PAT_cbam",
    "PAT_ch",
    "PAT_sf",
    "PAT_sp",
    "PConv",
    "PartialAttention",
    "QuantileChannelAttention",
    "RelativePosition",
    "WindowAttention",
]
