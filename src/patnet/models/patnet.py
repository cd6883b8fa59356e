"""The variants of PATNet, registered with timm."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .keys import native_state_dict
from .network import PATNet

__all__ = ["patnet_l", "patnet_m", "patnet_s", "patnet_t0", "patnet_t1", "patnet_t2"]


# The same for all: no weights on ImageNet are public.
_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "min_input_size": (3, 32, 32),
    "pool_size": (7, 7),
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv",
    "classifier": "classifier",
    "paper_ids": "arXiv:2503.03148",
    "paper_name": "Partial Convolution Meets Visual Attention",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs(
    {f"patnet_{variant}.untrained": dict(_CFG) for variant in ("t0", "t1", "t2", "s", "m", "l")}
)


def _create_patnet(variant: str, pretrained: bool, **kwargs: Any) -> PATNet:
    feature_cls = kwargs.get("feature_cls", "getter")
    if kwargs.get("features_only") and kwargs.get("output_norms") and feature_cls != "getter":
        raise ValueError(
            f"output_norms needs feature_cls='getter', because {feature_cls!r} takes the maps before the norms"
        )
    return build_model_with_cfg(
        PATNet,
        variant,
        pretrained,
        pretrained_filter_fn=native_state_dict,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter", "flatten_sequential": True},
        **kwargs,
    )


@register_model
def patnet_t0(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-T0: 4 298 456 parameters, 0.275 GMACs at 224 px."""
    args = {"embed_dim": 32, "depths": (2, 2, 6, 4), "num_heads": 4, "act_layer": "gelu", "drop_path_rate": 0.0}
    return _create_patnet("patnet_t0", pretrained, **args | kwargs)


@register_model
def patnet_t1(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-T1: 7 808 112 parameters, 0.610 GMACs at 224 px."""
    args = {"embed_dim": 48, "depths": (2, 2, 6, 4), "act_layer": "gelu", "drop_path_rate": 0.02}
    return _create_patnet("patnet_t1", pretrained, **args | kwargs)


@register_model
def patnet_t2(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-T2: 12 651 072 parameters, 1.078 GMACs at 224 px."""
    args = {"embed_dim": 64, "depths": (2, 2, 6, 4), "drop_path_rate": 0.05}
    return _create_patnet("patnet_t2", pretrained, **args | kwargs)


@register_model
def patnet_s(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-S: 28 976 352 parameters, 2.828 GMACs at 224 px."""
    args = {"embed_dim": 96, "depths": (2, 2, 9, 4), "drop_path_rate": 0.1}
    return _create_patnet("patnet_s", pretrained, **args | kwargs)


@register_model
def patnet_m(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-M: 61 367 424 parameters, 6.996 GMACs at 224 px."""
    args = {"embed_dim": 128, "depths": (2, 3, 16, 4), "drop_path_rate": 0.2}
    return _create_patnet("patnet_m", pretrained, **args | kwargs)


@register_model
def patnet_l(pretrained: bool = False, **kwargs: Any) -> PATNet:
    """PATNet-L: 104 465 984 parameters, 12.466 GMACs at 224 px."""
    args = {"embed_dim": 160, "depths": (2, 3, 20, 4), "drop_path_rate": 0.3}
    return _create_patnet("patnet_l", pretrained, **args | kwargs)
