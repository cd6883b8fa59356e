"""The options of a training run, as they stand in its `config.yaml`."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import timm
import yaml
from timm.optim import list_optimizers

from ..errors import InputError, nearest

__all__ = ["CHANGEABLE", "TrainConfig"]

# What may differ between a run and its resumption: where it runs, not what it learns.
CHANGEABLE = frozenset({"out", "data_root", "workers", "accelerator", "devices", "cache_dir"})


@dataclass(kw_only=True)
class TrainConfig:
    """Options of `patnet train`.

    Args:
        data: Data set: elpv, elpv-levels, a folder of class folders (or with train/ and val/), or a name that timm's
            create_dataset takes, such as torch/cifar10.
        out: Run folder, made by the run.
        model: Name of the model, one of ours or of timm's.
        model_args: Further arguments of the model, such as partial_ratio, channel_attn or mixers.
        weights: Checkpoint to start from in place of random weights.
        size: Side of the pictures in px.
        in_chans: Channels of the pictures, 3 for colour, 1 for grey.
        epochs: Passes over the training pictures.
        batch_size: Pictures per step and device.
        opt: Optimiser, a name that timm knows.
        lr: Highest learning rate.
        min_lr: Learning rate at the end of the cosine.
        warmup_epochs: Epochs of linear warm-up from 1e-6.
        weight_decay: Weight decay, on matrices only.
        label_smoothing: Share of the target spread over all classes.
        clip_grad: Largest gradient norm; none for no clipping.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth; none for the model's own.
        min_area: Least share of a picture's area that a random crop keeps.
        hflip: Probability of a left-right flip.
        vflip: Probability of an up-down flip.
        quarter_turns: Probability of a turn by 90 degrees.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm such as rand-m7-mstd0.5-inc1, in place of color_jitter.
        random_erase: Probability of erasing a random rectangle.
        crop_pct: Share of the picture's side that evaluation sees.
        data_root: Where timm finds or keeps its data sets.
        train_split: Name of the training split of a data set of timm's.
        val_split: Name of its validation split.
        val_fraction: Share of the training pictures that chooses the best epoch, where the data set has no such split.
        num_classes: Number of classes, for a data set of timm's that does not say it.
        cache_size: Keep a built-in data set reduced to this side in px; faster with many epochs.
        cache_dir: Where to keep it.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        devices: How many devices, as Lightning reads it.
        precision: Precision, as Lightning names it.
        channels_last: Keep pictures and weights channels-last, faster on most machines.
        seed: Of the weights, the order, the augmentation and the validation split.
    """

    data: str
    out: str
    model: str = "patnet_t0"
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    size: int = 224
    in_chans: int = 3
    epochs: int = 30
    batch_size: int = 64
    opt: str = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-5
    warmup_epochs: float = 2
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_grad: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float | None = None
    min_area: float = 0.35
    hflip: float = 0.5
    vflip: float = 0.0
    quarter_turns: float = 0.0
    color_jitter: float = 0.2
    auto_augment: str | None = None
    random_erase: float = 0.0
    crop_pct: float = 0.9
    data_root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    val_fraction: float = 0.1
    num_classes: int | None = None
    cache_size: int | None = None
    cache_dir: str | None = None
    workers: int = 2
    accelerator: str = "auto"
    devices: str = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    seed: int = 0

    def check(self) -> None:
        """Check what can be checked without the data.

        Raises:
            InputError: For the first option that cannot be used.
        """
        if not timm.is_model(self.model):
            known = timm.list_models()
            raise InputError(
                f"--model {self.model}: no such model{nearest(self.model, known)}; patnet models lists the family"
            )
        optimizers = [str(name) for name in list_optimizers()]
        if self.opt.lower() not in optimizers:
            raise InputError(f"--opt {self.opt}: timm has no such optimiser{nearest(self.opt, optimizers)}")
        for name, low in {"size": 32, "epochs": 1, "batch_size": 1, "workers": 0, "warmup_epochs": 0}.items():
            if not getattr(self, name) >= low:  # nan fits nowhere
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {low}")
        for name in ("lr", "crop_pct", "min_area"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} {getattr(self, name)}: must be above 0")
        for name in ("min_lr", "weight_decay", "color_jitter"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name} {getattr(self, name)}: must not be negative")
        for name in ("label_smoothing", "drop_rate", "hflip", "vflip", "quarter_turns", "random_erase", "min_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} {getattr(self, name)}: must lie in [0, 1]")
        if self.crop_pct > 1:
            raise InputError(f"--crop_pct {self.crop_pct}: must be at most 1")
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup_epochs {self.warmup_epochs}: leaves none of {self.epochs} epochs after it; "
                "lower it or raise --epochs"
            )
        if self.cache_size is not None and self.cache_size < self.size:
            raise InputError(f"--cache_size {self.cache_size}: is below --size {self.size}; set at least that")

    def to_yaml(self) -> str:
        """All options, as `patnet train --config` reads them."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def read(cls, file: Path) -> "TrainConfig":
        """The options of a run.

        Raises:
            InputError: If the file is not such a configuration.
        """
        try:
            values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, TypeError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not the configuration of a run ({str(error).splitlines()[0]})") from error

    def differences(self, other: "TrainConfig") -> list[str]:
        """Options that another run may not share with this one, in words."""
        return [
            f"--{f.name} is {getattr(self, f.name)!r} there and {getattr(other, f.name)!r} here"
            for f in fields(self)
            if f.name not in CHANGEABLE and getattr(self, f.name) != getattr(other, f.name)
        ]
