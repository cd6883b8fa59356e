"""The blocks of PATNet, each usable in any network of `(N, C, H, W)` maps."""

from .block import MIXERS, MLP, Mixer, PATBlock, PATResidualBlock
from .channel_attention import (
    CHANNEL_ATTENTIONS,
    GCT,
    SRM,
    ChannelAttention,
    GaussianChannelAttention,
    MeanChannelAttention,
    QuantileChannelAttention,
    spatial_mean_std,
)
from .folding import FusedConv2d, FusedLinear
from .frame import ConvAttention, FullAttention, PartialAttention
from .large_kernel_attention import LargeKernelAttention
from .linear_attention import LinearAttention
from .native import use_native
from .norm import BatchNorm2d
from .partial_conv import PConv
from .pat_ch import Full_ch, PAT_ch
from .pat_sf import Full_sf, FusedPAT_sf, PAT_sf
from .relative_position import RelativePosition
from .spatial_attention import SPATIAL_ATTENTIONS, Full_sp, FusedPAT_sp, PAT_cbam, PAT_sp
from .table import look_up, one_of
from .window_attention import WindowAttention

__all__ = [
    "CHANNEL_ATTENTIONS",
    "GCT",
    "MIXERS",
    "MLP",
    "SPATIAL_ATTENTIONS",
    "SRM",
    "BatchNorm2d",
    "ChannelAttention",
    "ConvAttention",
    "FullAttention",
    "Full_ch",
    "Full_sf",
    "Full_sp",
    "FusedConv2d",
    "FusedLinear",
    "FusedPAT_sf",
    "FusedPAT_sp",
    "GaussianChannelAttention",
    "LargeKernelAttention",
    "LinearAttention",
    "MeanChannelAttention",
    "Mixer",
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
    "look_up",
    "one_of",
    "spatial_mean_std",
    "use_native",
]
