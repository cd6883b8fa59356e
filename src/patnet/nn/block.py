"""The PAT block: a mixer chosen by name, and the MLP that contains the spatial attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from . import native
from .folding import FusedConv2d, affine_of, chain, fold, fused, split_affine, with_parts
from .frame import FullAttention, PartialAttention
from .large_kernel_attention import LargeKernelAttention
from .linear_attention import LinearAttention
from .norm import BatchNorm2d
from .partial_conv import PConv
from .pat_ch import Full_ch, PAT_ch
from .pat_sf import Full_sf, PAT_sf
from .spatial_attention import SPATIAL_ATTENTIONS, FusedPAT_sp
from .table import Layer, look_up
from .window_attention import WindowAttention

__all__ = ["MIXERS", "MLP", "Mixer", "PATBlock", "PATResidualBlock"]


@native.replaceable
class MLP(nn.Module):
    """Two 1x1 convolutions with a norm and an activation between them, then the spatial attention.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), figure of the PAT block.

    Args:
        dim: Channels `C`.
        mlp_ratio: Width of the hidden layer over `C`.
        spatial_attn: Name in `SPATIAL_ATTENTIONS`.
        act_layer: Class of the activation.
        norm_layer: Class of the norms.

    Raises:
        ValueError: If `spatial_attn` is unknown, or `mlp_ratio` leaves no hidden channel.
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 2.0,
        *,
        spatial_attn: str = "pat_sp",
        act_layer: Callable[[], nn.Module] = nn.ReLU,
        norm_layer: Layer = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(dim * mlp_ratio + 1e-6)
        if hidden < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel for dim={dim}")
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False, **dd)
        self.norm = norm_layer(hidden, **dd)
        self.act = act_layer()
        self.conv2 = nn.Conv2d(hidden, dim, 1, bias=False, **dd)
        self.attn = look_up(SPATIAL_ATTENTIONS, spatial_attn, "spatial_attn")(dim, norm_layer=norm_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        """The two convolutions, before the spatial attention: `(N, C, H, W)` to the same."""
        x = self.conv1(x)  # (N, mlp_ratio * C, H, W)
        if not torch.jit.is_scripting():
            layers: Any = (self.norm, self.act)
            if native.takes(x, *layers):
                return self.conv2(native.norm(x, *layers))
        return self.conv2(self.act(self.norm(x)))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into `conv1`, and a convolution of `attn` into `conv2`."""
        parts = {"attn": fused(self.attn)}
        if (affine := affine_of(self.norm)) is not None:
            parts |= {"conv1": fold(self.conv1, after=affine), "norm": nn.Identity()}
        if isinstance(attn := parts["attn"], nn.Sequential) and isinstance(first := attn[0], FusedConv2d):
            parts |= {"conv2": chain(self.conv2, first), "attn": attn[1]}
        return with_parts(self, **parts)


class PATBlock(nn.Module):
    """The block of stages 1 to 3: `y = x + DropPath(MLP(mixer(x)))`.

    Shapes: `(N, C, H, W)` to the same.

    Args:
        mixer: Maps `(N, C, H, W)` to the same shape.
        mlp: The MLP with the spatial attention.
        drop_path: Probability that an image skips the MLP, in training.
    """

    def __init__(self, mixer: nn.Module, mlp: MLP, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.add_mlp(x, self.mixer(x))

    def add_mlp(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """`shortcut + DropPath(MLP(x))`."""
        if not torch.jit.is_scripting():
            attn: Any = self.mlp.attn
            if isinstance(attn, FusedPAT_sp) and native.takes(shortcut, self.mlp, attn, attn.gate_conv, grad=False):
                return native.fused_spatial_attention(self.mlp.mix(x), attn, shortcut)
        return shortcut + self.drop_path(self.mlp(x))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the mixer's last norm folded into the MLP's first convolution."""
        mixer, affine = split_affine(fused(self.mixer))
        mlp: Any = fused(self.mlp)
        if affine is not None:
            mlp = with_parts(mlp, conv1=fold(mlp.conv1, before=affine))
        return with_parts(self, mixer=mixer, mlp=mlp, drop_path=nn.Identity())


class PATResidualBlock(PATBlock):
    """The block of stage 4, with a shortcut around the mixer too: `x = x + mixer(x)`, `y = x + DropPath(MLP(x))`.

    Shapes: `(N, C, H, W)` to the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return self.add_mlp(x, x)

    def fuse(self) -> nn.Module:
        """The same in evaluation mode; the shortcut keeps the mixer's norm, if any, out of the MLP."""
        return with_parts(self, mixer=fused(self.mixer), mlp=fused(self.mlp), drop_path=nn.Identity())


class Mixer(NamedTuple):
    """An entry of `MIXERS`.

    Attributes:
        make: Called as `make(dim, device=..., dtype=..., **options)`; gives a module that maps `(N, dim, H, W)` to the
            same shape.
        block: The block around it.
        options: Names of the network's options that `make` takes.
    """

    make: Layer
    block: type[PATBlock]
    options: tuple[str, ...] = ()

    def build(self, dim: int, *, device=None, dtype=None, **options: Any) -> nn.Module:
        """The mixer with those of `options` that it takes; with `partial_ratio=1`, the 3x3 convolution alone."""
        taken = {name: options[name] for name in self.options if name in options}
        if taken.get("partial_ratio") == 1:  # nothing is left to attend to
            return PConv(dim, 1.0, device=device, dtype=dtype)
        return self.make(dim, device=device, dtype=dtype, **taken)


def _conv(dim: int, kernel_size: int = 3, depthwise: bool = False, device=None, dtype=None) -> nn.Module:
    """A convolution of all channels, without bias, as in `PConv`."""
    groups, padding = dim if depthwise else 1, kernel_size // 2
    return nn.Conv2d(dim, dim, kernel_size, 1, padding, groups=groups, bias=False, device=device, dtype=dtype)


def _forms(name: str, block: type[PATBlock], pat: Layer, full: Layer, *options: str) -> dict[str, Mixer]:
    """The partial form, which convolves a part of the channels and attends to the others, and the full form."""
    return {
        f"pat_{name}": Mixer(pat, block, ("partial_ratio", *options)),
        f"full_{name}": Mixer(full, block, options),
    }


def _around(name: str, attention: Layer, *options: str) -> dict[str, Mixer]:
    """Both forms of the frame of `PAT_sf` around another attention."""
    pat, full = partial(PartialAttention, attention=attention), partial(FullAttention, attention=attention)
    return _forms(name, PATResidualBlock, pat, full, "sf_norm_position", *options)


_POSITION = ("num_heads", "position_method", "position_mode", "attn_drop", "proj_drop")

MIXERS: dict[str, Mixer] = {
    "pconv": Mixer(PConv, PATBlock, ("partial_ratio",)),
    "conv": Mixer(_conv, PATBlock),
    "dwconv": Mixer(partial(_conv, depthwise=True), PATBlock),
    "dwconv7": Mixer(partial(_conv, kernel_size=7, depthwise=True), PATBlock),
    **_forms("ch", PATBlock, PAT_ch, Full_ch, "channel_attn", "ch_norm_position", "norm_layer"),
    **_forms("sf", PATResidualBlock, PAT_sf, Full_sf, "sf_norm_position", *_POSITION),
    **_around("linear", LinearAttention, "num_heads", "proj_drop"),
    **_around("lka", LargeKernelAttention),
    **_around("window", WindowAttention, "window_size", *_POSITION),
}
