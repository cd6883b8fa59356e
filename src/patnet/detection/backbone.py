"""Backbones of detectors: the feature levels of a timm model, with torchvision's feature pyramid over them."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import timm
import torch
from timm.models import get_model_input_config
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..errors import InputError, nearest
from ..models import input_channels, load_weights, of_channels, read_checkpoint

STRIDES = (4, 8, 16, 32)  # of the four feature levels

Norm = Literal["frozen", "train"]

# Arguments of a checkpoint's network that concern its classifier or the source of its own weights.
_CLASSIFIER_ARGS = ("num_classes", "global_pool", "features_only", "pretrained", "checkpoint_path", "cache_dir")


class Backbone(nn.Module):
    """Feature levels of a network, brought to one width by a feature pyramid network.

    Shapes: images `(N, C, H, W)` to maps `(N, width, H / stride, W / stride)` by name: `"0"` is the finest level, then
    `"1"` and so on, then those that `extra` adds under its own names.

    Args:
        body: A `features_only` network.
        extra: The levels above the network's last one.
        norm: `"frozen"` keeps statistics, scale and shift of the network's norms, but not of those of the stage outputs
            (`output_norms`), which are new in a detector.
        width: Channels of all levels, which torchvision's detectors read as `out_channels`.
    """

    def __init__(self, body: FeatureGetterNet, extra: ExtraFPNBlock, norm: Norm = "train", width: int = 256) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), width, extra)
        self.out_channels = width
        self.norm = norm
        for module in self._frozen_norms():
            module.requires_grad_(False).eval()  # now too, because a trainer need not call `train`

    def _frozen_norms(self) -> Iterator[nn.Module]:
        if self.norm == "frozen":
            for name, module in self.body.named_modules():
                if isinstance(module, _BatchNorm) and "output_norms" not in name:
                    yield module

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; frozen norms stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_norms():
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of all levels, the finest first, in the dtype of the images."""
        # Anchors take their dtype from the maps; autocast's bfloat16 would round 1001 px to 1000.
        maps = self.fpn(OrderedDict((str(level), x) for level, x in enumerate(self.body(images))))
        return {name: x.to(images.dtype) for name, x in maps.items()}


def feature_network(
    name: str, levels: int, weights: str | os.PathLike | None = None, args: Mapping[str, Any] | None = None
) -> tuple[FeatureGetterNet, dict[str, Any]]:
    """The last feature levels of a timm model, and all arguments that it was built with.

    Args:
        name: Name of the model; each level of a `patnet_*` gets a norm of its own. Networks for images of one size get
            timm's `dynamic_img_size`, where they have it.
        levels: How many of the levels of `STRIDES`, counted from the last.
        weights: Checkpoint of a classifier of this architecture, whose arguments, mean and std are used too.
        args: Arguments of the model, which take precedence over the checkpoint's. With an `img_size` the network may be
            one that takes images of that size alone.

    Raises:
        InputError: If there is no such model, it has not these levels, it takes images of its own size alone, or the
            checkpoint does not fit it.
    """
    sized = "img_size" in (args or {})
    if not timm.is_model(name):
        raise InputError(f"backbone {name!r}: no such model of patnet or timm{nearest(name, timm.list_models())}")
    architecture = name.partition(".")[0]
    is_patnet = architecture in timm.list_models("patnet_*")
    described = read_checkpoint(weights)[1] if weights is not None else {}
    found = described.get("architecture", architecture).partition(".")[0]
    if found != architecture:
        raise InputError(f"{weights}: holds a {found}, which does not fit backbone {name}; give the backbone {found}")
    given = {key: value for key, value in described.get("model_args", {}).items() if key not in _CLASSIFIER_ARGS}
    args = {**({"output_norms": True} if is_patnet else {}), **given, **(args or {})}
    pretrained_cfg = described.get("pretrained_cfg", {})
    overlay = {key: pretrained_cfg[key] for key in ("mean", "std") if key in pretrained_cfg}
    options: dict[str, Any] = {"pretrained_cfg_overlay": overlay} if overlay else {}
    indices = tuple(range(-len(STRIDES), 0))[-levels:]
    options |= {"features_only": True, "feature_cls": "getter", "out_indices": indices}
    try:
        body, args = _create(name, options, args)
    except Exception as error:  # timm's models raise a dozen types for what they do not have
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"backbone {name}: does not give {levels} feature levels ({reason})") from error
    if not hasattr(body.model, "forward_intermediates"):
        raise InputError(f"backbone {name}: does not give feature levels: it has no forward_intermediates in timm")
    strides = tuple(body.feature_info.reduction())
    if strides != STRIDES[-levels:]:
        raise InputError(
            f"backbone {name}: its last feature levels have strides {', '.join(map(str, strides))}; "
            f"a detector needs {', '.join(map(str, STRIDES[-levels:]))}"
        )
    if not sized and not _takes_any_size(body):
        height, width = get_model_input_config(body.model)["input_size"][1:]
        raise InputError(
            f"backbone {name}: is for images of {height}x{width} px, and a detector's have many sizes; give a network "
            "for any size, such as a PATNet, ConvNeXt or Swin, or img_size in backbone_kwargs for images of one size"
        )
    if is_patnet:  # a norm that no image passes through gets no gradient, which stops training on several devices
        for level in range(len(STRIDES) - levels):
            body.model.output_norms[level] = nn.Identity()
    if weights is not None:
        load_weights(body, weights)
    return body, args


def _create(name: str, options: Mapping[str, Any], args: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A network and its arguments, for images of any size where timm has an argument for that."""
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        any_size = {"dynamic_img_size": True, **args}
        try:
            return timm.create_model(name, **options, **any_size), any_size
        except TypeError:  # it has no such argument, or not the others
            pass
    return timm.create_model(name, **options, **args), args


def _takes_any_size(body: FeatureGetterNet) -> bool:
    """Whether a network takes images of other sizes than its own, as some do that timm declares to be of one size."""
    model: Any = body.model
    if not get_model_input_config(model)["fixed_input_size"]:
        return True
    image = next(model.parameters()).new_zeros(1, input_channels(model), 64, 96)
    body.eval()
    try:
        with torch.no_grad():
            body(image)
    except Exception:  # each fails in its own way
        return False
    finally:
        body.train()
    return True


def normalization(body: FeatureGetterNet, given: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and std of the images that a network was trained on, or those given, as torchvision's detectors take them.

    Those of images of another number of channels than the network takes are averaged over the channels.

    Raises:
        InputError: If those given have another number of channels than the network.
    """
    model: Any = body.model
    cfg = model.pretrained_cfg
    channels = input_channels(model)
    values = {}
    for key in ("mean", "std"):
        option = f"image_{key}"
        values[option] = given.get(option, of_channels(cfg[key], channels))
        if len(values[option]) != channels:
            raise InputError(
                f"{option} has {len(values[option])} values and backbone {cfg['architecture']} takes images of "
                f"{channels} channels: give one value for each"
            )
    return values
