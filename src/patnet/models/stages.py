"""Where the parts of a timm model are: its first convolution, its stages, its classifier."""

from collections.abc import Sequence
from typing import Any

from timm.data import resolve_data_config
from timm.models import get_model_input_config
from torch import nn

__all__ = ["classifier_names", "first_convolutions", "input_channels", "of_channels", "preprocessing_of", "stages_of"]


def stages_of(model: Any) -> list[dict[str, Any]]:
    """What timm says of each stage, first to last: `module` its name, `num_chs` its channels, `reduction` its stride.

    Empty for a model without `feature_info`.
    """
    info: Any = getattr(model, "feature_info", None) or []
    return list(getattr(info, "info", info))


def first_convolutions(model: Any) -> list[str]:
    """Names of the modules that take the images; none if timm does not say."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or []
    return [found] if isinstance(found, str) else list(found)


def input_channels(model: Any) -> int:
    """Channels of the images that a timm model takes."""
    return int(get_model_input_config(model)["input_size"][0])


def of_channels(values: Sequence[float], channels: int) -> list[float]:
    """Means or stds of images' channels, for another number of channels the mean of them for each."""
    return list(values) if len(values) == channels else channels * [sum(values) / len(values)]


def preprocessing_of(model: Any) -> dict[str, Any]:
    """The preprocessing of a timm model, as `timm.data.resolve_data_config` gives it, for the images that it takes.

    A model that takes images of one size alone gets that size. For other channels than those of its weights, each gets
    the mean of their means and stds.
    """
    config, takes = resolve_data_config(model=model), get_model_input_config(model)
    size = takes["input_size"] if takes["fixed_input_size"] else config["input_size"]
    channels = takes["input_size"][0]
    if channels != config["input_size"][0]:
        size = (channels, *size[1:])
        config |= {key: tuple(of_channels(config[key], channels)) for key in ("mean", "std")}
    return config | {"input_size": size}


def classifier_names(model: Any) -> list[str]:
    """Names of the modules that give the logits: one, two of a distilled model or of a VOLO, none of a backbone."""
    found = model.get_classifier()
    layers = [*(found if isinstance(found, list | tuple) else [found]), getattr(model, "aux_head", None)]
    named = {id(module): name for name, module in model.named_modules()}
    return [named[id(layer)] for layer in layers if isinstance(layer, nn.Module) and named.get(id(layer))]
