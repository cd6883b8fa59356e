"""Transforms of images to tensors, for training and evaluation, from timm and torchvision."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.data import create_transform
from torchvision.transforms import v2

from .images import convert_image


def _to_mode(data_config: Mapping[str, Any]) -> Callable:
    return partial(convert_image, mode="L" if data_config["input_size"][0] == 1 else "RGB")


def eval_transform(data_config: Mapping[str, Any]) -> Callable:
    """The preprocessing of a model, from what `timm.data.resolve_data_config` gives: resize, centre crop, normalise."""
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    to_tensor = create_transform(is_training=False, **{key: data_config[key] for key in keys if key in data_config})
    return v2.Compose([_to_mode(data_config), to_tensor])


def train_transform(
    data_config: Mapping[str, Any],
    *,
    scale: Sequence[float] = (0.08, 1.0),
    hflip: float = 0.5,
    vflip: float = 0.0,
    rot90: float = 0.0,
    color_jitter: float = 0.4,
    aa: str | None = None,
    reprob: float = 0.0,
) -> Callable:
    """Random augmentation, then the same normalisation as in evaluation.

    Args:
        data_config: As `timm.data.resolve_data_config` gives it.
        scale: Smallest and largest share of the image's area that a random-resized crop keeps.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        rot90: Probability of a rotation by 90 degrees. With `hflip`, `vflip` and `rot90` at 0.5, the eight symmetries
            of a square are equally probable.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: AutoAugment policy of timm, for example `"rand-m7-mstd0.5-inc1"`; replaces `color_jitter`.
        reprob: Probability of random erasing.
    """
    augment = create_transform(
        is_training=True,
        **{key: data_config[key] for key in ("input_size", "interpolation", "mean", "std")},
        scale=(scale[0], scale[1]),
        ratio=(3 / 4, 4 / 3) if scale[0] < 0.5 else (1.0, 1.0),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=aa,
        re_prob=reprob,
    )
    rotate = [v2.RandomApply([v2.RandomRotation((90, 90))], p=rot90)] if rot90 else []
    return v2.Compose([_to_mode(data_config), *rotate, augment])
