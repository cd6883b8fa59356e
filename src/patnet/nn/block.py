"""The PAT block: a mixer chosen by name, and the MLP that holds the spatial attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from timm.layers import DropPath
from torch import Tensor, nn

from .attention_frame import FullAttention, PartialAttention
from .fused import Scales, affine_of, fold, fused_or_same, with_parts
from .large_kernel_attention import LargeKernelAttention
from .linear_attention import LinearAttention
from .norm import BatchNorm2d
from .partial_conv import PConv
from .pat_ch import Full_ch, PAT_ch
from .pat_sf import Full_sf, PAT_sf
from .spatial_attention import SPATIAL_ATTENTIONS
from .table import look_up
from .window_attention import WindowAttention

__all__ = ["MIXERS", "MLP", "Mixer", "MixerOptions", "PATBlock", "PATResidualBlock"]


class MLP(nn.Module):
    """Two 1x1 convolutions with a norm and an activation between them, then the spatial attention.

    Shapes: `(N, C, H, W)` to the same. From PATNet (arXiv 2503.03148), figure of the PAT block.

    Args:
        dim: Channels `C`.
        mlp_ratio: Width of the hidden layer over `C`.
        spatial_attn: Name in `SPATIAL_ATTENTIONS`.

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
        norm_layer: Callable[..., nn.Module] = BatchNorm2d,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        hidden = int(dim * mlp_ratio + 1e-6)
        if hidden < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves no hidden channel for dim={dim}")
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False, **dd)
        self.norm = norm_layer(hidden, **dd)
        self.act = act_layer()
        self.conv2 = nn.Conv2d(hidden, dim, 1, bias=False, **dd)
        self.attn = look_up(SPATIAL_ATTENTIONS, spatial_attn, "spatial_attn")(dim, norm_layer=norm_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv1(x)))  # (N, mlp_ratio * C, H, W)
        return self.attn(self.conv2(x))

    def fuse(self, before: Scales | None = None) -> nn.Module:
        """The same in evaluation mode, with every norm folded that can be, and the spatial attention into `conv2`.

        Args:
            before: Scale and shift of each channel that the mixer leaves to `conv1`.
        """
        affine = affine_of(self.norm)
        parts: dict[str, nn.Module] = {}
        if before is not None or affine is not None:
            parts["conv1"] = fold(self.conv1, before, affine)
        if affine is not None:
            parts["norm"] = nn.Identity()
        attn: Any = self.attn
        merged = attn.fuse_into(self.conv2) if hasattr(attn, "fuse_into") else None
        if merged is not None:
            parts["conv2"], parts["attn"] = merged
        else:
            parts["attn"] = fused_or_same(attn)
        return with_parts(self, **parts)


class PATBlock(nn.Module):
    """The block of stages 1 to 3: `y = x + DropPath(MLP(mixer(x)))`.

    Shapes: `(N, C, H, W)` to the same.
    """

    def __init__(self, mixer: Any, mlp: MLP, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer = mixer
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.mixer(x)))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the mixer's last norm folded into the MLP's first convolution."""
        mixer, before = self.mixer.split_norm() if hasattr(self.mixer, "split_norm") else (self.mixer, None)
        return with_parts(self, mixer=fused_or_same(mixer), mlp=self.mlp.fuse(before), drop_path=nn.Identity())


class PATResidualBlock(PATBlock):
    """The block of stage 4, with a shortcut around the mixer too: `x = x + mixer(x)`, `y = x + DropPath(MLP(x))`.

    Shapes: `(N, C, H, W)` to the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + self.drop_path(self.mlp(x))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode; the shortcut keeps the mixer's norm, if any, out of the MLP."""
        return with_parts(self, mixer=fused_or_same(self.mixer), mlp=self.mlp.fuse(), drop_path=nn.Identity())


class MixerOptions(NamedTuple):
    """What a network tells its mixers; each takes what concerns it."""

    partial_ratio: float = 0.25
    channel_attn: str = "gaussian"
    num_heads: int = 6
    position_method: str = "euclidean"
    position_mode: str = "bias"
    attn_drop: float = 0.1
    proj_drop: float = 0.1
    norm_layer: Callable[..., nn.Module] = BatchNorm2d
    device: object = None
    dtype: object = None
    ch_norm_position: str = "untouched"
    sf_norm_position: str = "before"
    window_size: int = 7


Build = Callable[[int, MixerOptions], nn.Module]


class Mixer(NamedTuple):
    """An entry of `MIXERS`: how the mixer is built for `dim` channels, and the block that it stands in."""

    build: Build
    block: type[PATBlock]


def _pconv(dim: int, o: MixerOptions) -> nn.Module:
    return PConv(dim, o.partial_ratio, device=o.device, dtype=o.dtype)


def _conv(kernel_size: int, *, depthwise: bool) -> Build:
    """A convolution of all channels, without bias, as in `PConv`."""

    def build(dim: int, o: MixerOptions) -> nn.Module:
        dd: dict[str, Any] = {"device": o.device, "dtype": o.dtype}
        groups = dim if depthwise else 1
        return nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=False, **dd)

    return build


def _or_all_convolved(build: Build) -> Build:
    """`build`, except that `partial_ratio=1` leaves nothing to attend to, and so the 3x3 convolution alone."""

    def build_either(dim: int, o: MixerOptions) -> nn.Module:
        return _pconv(dim, o) if o.partial_ratio == 1 else build(dim, o)

    return build_either


def _pat_ch(dim: int, o: MixerOptions) -> nn.Module:
    return PAT_ch(
        dim,
        o.partial_ratio,
        channel_attn=o.channel_attn,
        norm_position=o.ch_norm_position,
        norm_layer=o.norm_layer,
        device=o.device,
        dtype=o.dtype,
    )


def _full_ch(dim: int, o: MixerOptions) -> nn.Module:
    return Full_ch(dim, channel_attn=o.channel_attn, norm_layer=o.norm_layer, device=o.device, dtype=o.dtype)


def _attention(o: MixerOptions) -> dict[str, Any]:
    """What `o` says of heads, positions and dropout."""
    return {
        "num_heads": o.num_heads,
        "position_method": o.position_method,
        "position_mode": o.position_mode,
        "attn_drop": o.attn_drop,
        "proj_drop": o.proj_drop,
    }


def _frame(o: MixerOptions) -> dict[str, Any]:
    """What `o` says of the frame of `PAT_sf`."""
    return {"norm_position": o.sf_norm_position, "device": o.device, "dtype": o.dtype}


def _pat_sf(dim: int, o: MixerOptions) -> nn.Module:
    return PAT_sf(dim, o.partial_ratio, **_attention(o), **_frame(o))


def _full_sf(dim: int, o: MixerOptions) -> nn.Module:
    return Full_sf(dim, **_attention(o), **_frame(o))


def _linear(o: MixerOptions) -> Callable[..., nn.Module]:
    return partial(LinearAttention, num_heads=o.num_heads, proj_drop=o.proj_drop)


def _lka(o: MixerOptions) -> Callable[..., nn.Module]:
    return LargeKernelAttention


def _window(o: MixerOptions) -> Callable[..., nn.Module]:
    return partial(WindowAttention, window_size=o.window_size, **_attention(o))


def _partial(attention: Callable[[MixerOptions], Callable[..., nn.Module]]) -> Build:
    return lambda dim, o: PartialAttention(dim, attention(o), o.partial_ratio, **_frame(o))


def _full(attention: Callable[[MixerOptions], Callable[..., nn.Module]]) -> Build:
    return lambda dim, o: FullAttention(dim, attention(o), **_frame(o))


# "pat_..." convolves a part of the channels and attends to the others, "full_..." does both to all of them.
MIXERS: dict[str, Mixer] = {
    "pconv": Mixer(_pconv, PATBlock),
    "conv": Mixer(_conv(3, depthwise=False), PATBlock),
    "dwconv": Mixer(_conv(3, depthwise=True), PATBlock),
    "dwconv7": Mixer(_conv(7, depthwise=True), PATBlock),
    "pat_ch": Mixer(_or_all_convolved(_pat_ch), PATBlock),
    "full_ch": Mixer(_full_ch, PATBlock),
    "pat_sf": Mixer(_or_all_convolved(_pat_sf), PATResidualBlock),
    "full_sf": Mixer(_full_sf, PATResidualBlock),
    "pat_linear": Mixer(_or_all_convolved(_partial(_linear)), PATResidualBlock),
    "full_linear": Mixer(_full(_linear), PATResidualBlock),
    "pat_lka": Mixer(_or_all_convolved(_partial(_lka)), PATResidualBlock),
    "full_lka": Mixer(_full(_lka), PATResidualBlock),
    "pat_window": Mixer(_or_all_convolved(_partial(_window)), PATResidualBlock),
    "full_window": Mixer(_full(_window), PATResidualBlock),
}
