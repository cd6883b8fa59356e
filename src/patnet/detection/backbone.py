"""The backbone of a detector: a timm model's feature levels under torchvision's feature pyramid."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import timm
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ..errors import InputError, nearest
from ..models.checkpoint import load_weights, read_checkpoint

__all__ = ["STRIDES", "Backbone", "Norm", "brightness", "feature_network", "in_chans"]

# Of the four feature levels, in px.
STRIDES = (4, 8, 16, 32)

Norm = Literal["frozen", "train"]

# What the description of a checkpoint says of its classifier, or of where its own weights came from.
_NOT_OF_THE_FEATURES = ("num_classes", "global_pool", "features_only", "pretrained", "checkpoint_path", "cache_dir")


class Backbone(nn.Module):
    """Feature levels of a network, brought to one width by a feature pyramid.

    Shapes: pictures `(N, C, H, W)` to maps `(N, width, H / stride, W / stride)` by name: `"0"` for the finest level,
    `"1"` and so on, and the further ones under the names that `extra` gives them.

    Args:
        body: A `features_only` network.
        extra: The levels beyond the network's last.
        norm: `"frozen"` keeps the norms within the network as they are, statistics, scale and shift, also in training
            mode. The norms that stand on the stage outputs (`output_norms`) are part of the detector, not of what the
            network learned before, and are trained in either case.
        width: Channels of all levels.

    Attributes:
        out_channels: That width, where torchvision's detectors look for it.
    """

    def __init__(self, body: FeatureGetterNet, extra: ExtraFPNBlock, norm: Norm = "train", width: int = 256) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), width, extra)
        self.out_channels = width
        self.norm = norm
        for frozen in self._frozen_norms():
            frozen.requires_grad_(False)

    def _frozen_norms(self) -> Iterator[nn.Module]:
        if self.norm == "frozen":
            for name, module in self.body.named_modules():
                if isinstance(module, _BatchNorm) and "output_norms" not in name:
                    yield module

    def train(self, mode: bool = True) -> Self:
        """As any module's, except that frozen norms stay in evaluation mode."""
        super().train(mode)
        for frozen in self._frozen_norms():
            frozen.eval()
        return self

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Maps of all levels, the finest first."""
        return self.fpn(OrderedDict((str(level), x) for level, x in enumerate(self.body(pictures))))


def feature_network(
    name: str, levels: int, weights: str | os.PathLike | None = None, args: Mapping[str, Any] | None = None
) -> FeatureGetterNet:
    """The last feature levels of a timm model; those of a `patnet_*` each have a norm of their own.

    Args:
        name: Of the model.
        levels: How many of the levels of `STRIDES`, counted from the last.
        weights: Checkpoint of a classifier with this architecture, see `patnet.load_weights`. Its classifier is left
            out. Arguments of the architecture that the checkpoint names hold here too, and so does the brightness
            that it was trained on.
        args: Arguments of the model, before those.

    All arguments that the model was made with stand in the result's `model_args`.

    Raises:
        InputError: If there is no such model, it has not these levels, or the checkpoint does not fit it.
    """
    if not timm.is_model(name):
        raise InputError(f"backbone {name!r}: no such model of patnet or timm{nearest(name, timm.list_models())}")
    architecture = name.partition(".")[0]
    ours = architecture in timm.list_models("patnet_*")
    described = read_checkpoint(weights)[1] if weights is not None else {}
    there = described.get("architecture", architecture).partition(".")[0]
    if there != architecture:
        raise InputError(f"{weights}: holds a {there}, which does not fit backbone {name}; build with backbone={there}")
    given = {key: value for key, value in described.get("model_args", {}).items() if key not in _NOT_OF_THE_FEATURES}
    args = {**({"output_norms": True} if ours else {}), **given, **(args or {})}
    indices = tuple(range(-len(STRIDES), 0))[-levels:]
    try:
        body: Any = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=indices, **args)
    except Exception as error:  # timm and its models say in a dozen types what they do not have
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"backbone {name}: gives no {levels} feature levels ({reason})") from error
    if not hasattr(body.model, "forward_intermediates"):
        raise InputError(f"backbone {name}: gives no feature levels, for timm's has no forward_intermediates")
    strides = tuple(body.feature_info.reduction())
    if strides != STRIDES[-levels:]:
        raise InputError(
            f"backbone {name}: its last feature levels have strides {', '.join(map(str, strides))}; "
            f"a detector needs {', '.join(map(str, STRIDES[-levels:]))}"
        )
    if ours:  # a norm that no picture passes through would never get a gradient
        for level in range(len(STRIDES) - levels):
            body.model.output_norms[level] = nn.Identity()
    body.model_args = args
    if weights is not None:
        load_weights(body, weights)
        known = described.get("pretrained_cfg", {})
        body.model.pretrained_cfg |= {key: known[key] for key in ("mean", "std") if key in known}
    return body


def in_chans(body: FeatureGetterNet) -> int:
    """Channels of the pictures that a network takes."""
    model: Any = body.model
    first = model.pretrained_cfg["first_conv"]
    return model.get_submodule(first if isinstance(first, str) else first[0]).in_channels


def brightness(body: FeatureGetterNet) -> dict[str, list[float]]:
    """Mean and deviation of the pictures that a network was trained on, as torchvision's detectors take them."""
    cfg: Any = body.model.pretrained_cfg
    values = {"image_mean": list(cfg["mean"]), "image_std": list(cfg["std"])}
    if in_chans(body) == 1:
        return {key: [sum(value) / len(value)] for key, value in values.items()}
    return values
