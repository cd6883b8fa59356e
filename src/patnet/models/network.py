"""The network of PATNet, "Partial Convolution Meets Visual Attention" (arXiv 2503.03148)."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    Linear,
    SelectAdaptivePool2d,
    calculate_drop_path_rates,
    get_act_layer,
    get_norm_layer,
    trunc_normal_,
)
from timm.layers.trace_utils import _assert
from timm.models import checkpoint_seq, register_notrace_function
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import nearest
from ..nn import MIXERS, MLP, BatchNorm2d, look_up
from ..nn.folding import affine_of, fold, with_parts
from ..nn.table import Layer

__all__ = ["ConvNorm", "PATNet", "Stage"]


class ConvNorm(nn.Module):
    """The stem and the downsampling between stages: a convolution whose stride is its kernel size, and a norm.

    Shapes: `(N, in_chans, H, W)` to `(N, out_chans, H // stride, W // stride)`.
    """

    def __init__(
        self, in_chans: int, out_chans: int, stride: int, norm_layer: Layer = BatchNorm2d, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, stride, stride, bias=False, device=device, dtype=dtype)
        self.norm = norm_layer(out_chans, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Module:
        """The same in evaluation mode, with the norm folded into the convolution."""
        affine = affine_of(self.norm)
        if affine is None:
            return self
        return with_parts(self, conv=fold(self.conv, after=affine), norm=nn.Identity())


class Stage(nn.Module):
    """Downsampling, except in the first stage, and the blocks of a stage.

    Shapes: `(N, C / 2, 2H, 2W)` to `(N, C, H, W)` with downsampling, `(N, C, H, W)` to the same without.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


@register_notrace_function
def without_gradient_of_constant(features: Tensor, images: Tensor, training: bool) -> Tensor:
    """`features`, in training with gradient 0 if `images` are one constant image throughout; unchanged if not.

    On such a batch every batch norm has variance 0 and multiplies gradients by up to `1 / sqrt(eps)`, 316; over a few
    dozen norms they overflow to NaN. The true gradient of all weights is 0, up to the borders of the maps: the gradient
    of a batch norm's input sums to 0 over the batch, and the inputs that it multiplies are the same everywhere.
    """
    if not training:
        return features
    constant = (images == images[:1, :, :1, :1]).all()
    return torch.where(constant, features.detach(), features)


class PATNet(nn.Module):
    """PATNet: a stem, four stages of PAT blocks, and a head; arXiv 2503.03148, table of the variants.

    Shapes: `(N, in_chans, H, W)` to `(N, num_classes)`; H and W at least 32, multiples of 32 use every pixel.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the pooled features of `feature_dim` channels.
        global_pool: `"avg"`, `"max"`, `"avgmax"`, or `""` for no pooling, which needs `num_classes=0`.
        embed_dim: Channels of the first stage, doubled at each further one.
        depths: Blocks of each stage.
        mlp_ratio: Width of the MLP's hidden layer over the channels.
        feature_dim: Channels of the head's hidden layer.
        act_layer: Activation, a name that timm knows or a module class.
        norm_layer: Norm, a name that timm knows or a module class; None for `patnet.nn.BatchNorm2d`.
        mixers: Mixer of each stage, names in `patnet.nn.MIXERS`.
        spatial_attn: Attention in the MLP, a name in `patnet.nn.SPATIAL_ATTENTIONS`.
        output_norms: Give each stage's output a norm of its own, as the authors do under detectors; the norms apply to
            what `forward_intermediates` and `features_only` return, not to the input of the next stage.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0 at the first.
        attn_drop_rate: Dropout of the attention weights of `PAT_sf`.
        proj_drop_rate: Dropout after the projection of `PAT_sf`.
        **mixer_options: Options of the mixers, each given to the mixers that take it: `partial_ratio` (share of the
            channels that is convolved; 1 convolves all and attends to none), `channel_attn`, `ch_norm_position`,
            `num_heads`, `position_method`, `position_mode`, `sf_norm_position`, `window_size`; see
            `patnet.nn.PAT_ch`, `patnet.nn.PAT_sf` and `patnet.nn.WindowAttention`.

    Raises:
        TypeError: If neither the network nor a mixer takes an argument.
        ValueError: If a name is unknown, or sizes, ratios and heads do not fit each other.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (2, 2, 6, 4),
        mlp_ratio: float = 2.0,
        feature_dim: int = 1280,
        act_layer: str | type[nn.Module] = "relu",
        norm_layer: str | type[nn.Module] | None = None,
        mixers: Sequence[str] = ("pat_ch", "pat_ch", "pat_ch", "pat_sf"),
        spatial_attn: str = "pat_sp",
        output_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn_drop_rate: float = 0.1,
        proj_drop_rate: float = 0.1,
        device=None,
        dtype=None,
        **mixer_options: Any,
    ) -> None:
        super().__init__()
        if len(mixers) != len(depths):
            raise ValueError(f"mixers names {len(mixers)} stages and depths {len(depths)}: give one mixer per stage")
        known = {option for mixer in MIXERS.values() for option in mixer.options}
        for option in mixer_options:
            if option not in known:
                names = [*inspect.signature(PATNet).parameters, *known]
                raise TypeError(f"PATNet takes no argument {option!r}{nearest(option, names)}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        try:
            act: Any = get_act_layer(act_layer)
            norm: Any = get_norm_layer(norm_layer) if norm_layer else BatchNorm2d
        except KeyError as error:
            raise ValueError(
                f"timm has no layer {error}: act_layer={act_layer!r}, norm_layer={norm_layer!r}"
            ) from error
        options = {"norm_layer": norm, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate, **mixer_options}
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        dims = [embed_dim * 2**i for i in range(len(depths))]
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)

        self.stem = ConvNorm(in_chans, embed_dim, 4, norm, **dd)
        stages = []
        for i, (dim, name, rates) in enumerate(zip(dims, mixers, drop_paths, strict=True)):
            mixer = look_up(MIXERS, name, "mixer")
            downsample = ConvNorm(dim // 2, dim, 2, norm, **dd) if i > 0 else nn.Identity()
            blocks = [
                mixer.block(
                    mixer.build(dim, **options, **dd),
                    MLP(dim, mlp_ratio, spatial_attn=spatial_attn, act_layer=act, norm_layer=norm, **dd),
                    rate,
                )
                for rate in rates
            ]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.output_norms = nn.ModuleList([norm(dim, **dd) if output_norms else nn.Identity() for dim in dims])
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.num_features = dims[-1]
        self.head_hidden_size = feature_dim
        self.conv_head: nn.Module = nn.Conv2d(dims[-1], feature_dim, 1, bias=False, **dd)
        self.act: nn.Module = act()
        self._set_classifier(num_classes, global_pool, **dd)
        self.init_weights()

    def _set_classifier(self, num_classes: int, global_pool: str, device=None, dtype=None) -> None:
        if not global_pool and num_classes > 0:
            raise ValueError("global_pool='' leaves maps that no classifier takes: set num_classes=0 with it")
        if global_pool not in ("", "avg", "max", "avgmax"):
            raise ValueError(f"unknown global_pool {global_pool!r}: choose from avg, max, avgmax")
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.classifier = (
            Linear(self.head_hidden_size, num_classes, device=device, dtype=dtype) if num_classes > 0 else nn.Identity()
        )

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Truncated normal with std 0.02 for convolutions and linear layers, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay: the tables of the relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith("position.table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of layers for a learning rate that decays towards the stem, in timm's form."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^output_norms|^conv_head", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute each block's activations in the backward pass."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, device=None, dtype=None) -> None:
        """Replace the last layer by a new one for `num_classes` classes, 0 for none."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        weight = self.stem.conv.weight
        self._set_classifier(num_classes, pool, device or weight.device, dtype or weight.dtype)
        if isinstance(self.classifier, nn.Linear):
            trunc_normal_(self.classifier.weight, std=0.02)
            nn.init.zeros_(self.classifier.bias)
        for module in (self.global_pool, self.flatten, self.classifier):
            module.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs at strides 4, 8, 16 and 32, and the final features.

        Args:
            x: Images `(N, in_chans, H, W)`.
            indices: The last n stages if an int, all if None, those stages if a sequence.
            norm: Part of timm's contract, without effect; `output_norms` sets the norms of the outputs.
            stop_early: Leave out the stages after the last of `indices`.
            output_fmt: `"NCHW"`.
            intermediates_only: Return the list alone.

        Raises:
            ValueError: If `output_fmt` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt='{output_fmt}' is not supported: PATNet's features are NCHW")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        images, x = x, self._stem(x)
        for i, (stage, output_norm) in enumerate(zip(self.stages, self.output_norms)):  # noqa: B905, not in TorchScript
            if i <= max_index or not stop_early:
                x = stage(x)
            if i in take_indices:
                intermediates.append(without_gradient_of_constant(output_norm(x), images, self.training))
        if intermediates_only:
            return intermediates
        return without_gradient_of_constant(x, images, self.training), intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of `indices`, and the head; give the indices, counted from 0."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        cut = max_index + 1 < len(self.stages)
        self.stages = self.stages[: max_index + 1]
        self.output_norms = self.output_norms[: max_index + 1]
        self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.head_hidden_size = self.num_features
            self.conv_head = nn.Identity()
            self.act = nn.Identity()
            self.reset_classifier(0, "")
        return take_indices

    def _stem(self, x: Tensor) -> Tensor:
        _assert(x.dim() == 4, "images must be a batch (N, in_chans, H, W)")
        least = 4 * 2 ** (len(self.stages) - 1)
        for side in (x.shape[2], x.shape[3]):
            _assert(side >= least, f"the image is too small: the network takes at least {least}x{least} px")
        return self.stem(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Features before pooling: `(N, in_chans, H, W)` to `(N, 8 * embed_dim, H // 32, W // 32)`."""
        return without_gradient_of_constant(self.stages(self._stem(x)), x, self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with `pre_logits` the `feature_dim` features before the classifier."""
        x = self.global_pool(x)
        x = self.flatten(self.act(self.conv_head(x)))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
