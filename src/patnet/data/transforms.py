"""From picture to tensor, for training and for evaluation, through timm and torchvision."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.data import create_transform
from torchvision.transforms import v2

from .images import as_seen

__all__ = ["eval_transform", "train_transform"]


def _mode(in_chans: int) -> str:
    return "L" if in_chans == 1 else "RGB"


def eval_transform(data_config: Mapping[str, Any]) -> Callable:
    """The preprocessing that belongs to a model: resize, centre crop, normalise.

    Args:
        data_config: As `timm.data.resolve_data_config` gives it.
    """
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    to_tensor = create_transform(is_training=False, **{key: data_config[key] for key in keys if key in data_config})
    return v2.Compose([partial(as_seen, mode=_mode(data_config["input_size"][0])), to_tensor])


def train_transform(
    data_config: Mapping[str, Any],
    *,
    min_area: float = 0.08,
    hflip: float = 0.5,
    vflip: float = 0.0,
    quarter_turns: float = 0.0,
    color_jitter: float = 0.4,
    auto_augment: str | None = None,
    random_erase: float = 0.0,
) -> Callable:
    """Random augmentation, then the same normalisation as in evaluation.

    Args:
        data_config: As `timm.data.resolve_data_config` gives it.
        min_area: Least share of the picture's area that a random crop keeps.
        hflip: Probability of a left-right flip.
        vflip: Probability of an up-down flip.
        quarter_turns: Probability of a turn by 90 degrees; with both flips at 0.5 and this at 0.5, the eight
            symmetries of a square are equally likely.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm, for example `"rand-m7-mstd0.5-inc1"`; takes the place of `color_jitter`.
        random_erase: Probability of erasing a random rectangle.
    """
    augment = create_transform(
        is_training=True,
        input_size=data_config["input_size"],
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        scale=(min_area, 1.0),
        ratio=(3 / 4, 4 / 3) if min_area < 0.5 else (1.0, 1.0),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
        re_prob=random_erase,
    )
    turn = [v2.RandomApply([v2.RandomRotation((90, 90))], p=quarter_turns)] if quarter_turns else []
    return v2.Compose([partial(as_seen, mode=_mode(data_config["input_size"][0])), *turn, augment])
