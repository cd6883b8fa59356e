"""The options of a training run, as they stand in its `config.yaml`."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import timm
import yaml
from timm.optim import list_optimizers

from ..errors import InputError, nearest

__all__ = ["CHANGEABLE", "RunConfig", "TrainConfig"]

# What may differ between a run and its resumption: where it runs, not what it learns.
CHANGEABLE = frozenset(
    {
        "out",
        "data_root",
        "workers",
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "cache_dir",
        "checkpoint_minutes",
        "wandb",
    }
)


@dataclass(kw_only=True)
class RunConfig:
    """The options of any run, whatever it trains.

    Args:
        data: Data set.
        out: Run folder, made by the run.
        epochs: Passes over the training pictures.
        batch_size: Pictures that a device computes at once, or auto for as many as fit.
        global_batch_size: Pictures per step on all devices together; devices accumulate what this takes.
        opt: Optimiser, a name that timm knows.
        lr: Highest learning rate.
        weight_decay: Weight decay, on matrices only.
        ema_decay: Decay of a moving average of the weights, which then are evaluated and kept; none for no average.
        clip_grad: Largest gradient norm; none for no clipping.
        max_skipped: Steps in a row without a finite gradient, each skipped, at which the run stops.
        hflip: Probability of a left-right flip.
        vflip: Probability of an up-down flip.
        max_unreadable: Share of an epoch's pictures that may be unreadable; others take their place.
        strict: Stop at the first picture that cannot be read.
        workers: Processes that load pictures.
        accelerator: Device, as Lightning names it.
        devices: How many devices of a machine, as Lightning reads it.
        num_nodes: How many machines.
        strategy: How devices work together, as Lightning names it, such as ddp; fsdp divides the weights too.
        sync_batchnorm: Norm statistics over all devices, on GPUs.
        precision: Precision, as Lightning names it.
        channels_last: Keep pictures and weights channels-last, faster on most machines.
        grad_checkpointing: Compute activations twice in place of keeping them, to save memory.
        checkpoint_minutes: Save what a resumption needs so often, and at the end of each epoch.
        wandb: Project of Weights & Biases to log to, if it is installed.
        seed: Of the weights, the order, the augmentation and the validation split.
    """

    COMMAND: ClassVar[str]

    data: str
    out: str
    epochs: int = 30
    batch_size: int | Literal["auto"] = 64
    global_batch_size: int | None = None
    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    ema_decay: float | None = None
    clip_grad: float | None = None
    max_skipped: int = 10
    hflip: float = 0.5
    vflip: float = 0.0
    max_unreadable: float = 0.001
    strict: bool = False
    workers: int = 2
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    grad_checkpointing: bool = False
    checkpoint_minutes: float = 10.0
    wandb: str | None = None
    seed: int = 0

    def check_range(self, least: Mapping[str, float], positive: Iterable[str], shares: Iterable[str]) -> None:
        """Check numbers, of this class's options too.

        Args:
            least: The least value of each.
            positive: Those that must be above 0, or none.
            shares: Those that must lie in [0, 1], or none.

        Raises:
            InputError: For the first option that cannot be used.
        """
        optimizers = [str(name) for name in list_optimizers()]
        if self.opt.lower() not in optimizers:
            raise InputError(f"--opt {self.opt}: timm has no such optimiser{nearest(self.opt, optimizers)}")
        shared = {
            "epochs": 1,
            "batch_size": 1,
            "global_batch_size": 1,
            "max_skipped": 1,
            "workers": 0,
            "num_nodes": 1,
            "weight_decay": 0,
        }
        for name, low in {**shared, **least}.items():
            value = getattr(self, name)
            if not (value is None or value == "auto" or value >= low):  # nan fits nowhere
                raise InputError(f"--{name} {value}: must {f'be at least {low}' if low else 'not be negative'}")
        for name in ("lr", "checkpoint_minutes", "clip_grad", *positive):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"--{name} {value}: must be above 0")
        for name in ("hflip", "vflip", "max_unreadable", "ema_decay", *shares):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"--{name} {value}: must lie in [0, 1]")

    def check(self) -> None:
        """Check what can be checked without the data.

        Raises:
            InputError: For the first option that cannot be used.
        """
        raise NotImplementedError

    def to_yaml(self) -> str:
        """All options, as `--config` reads them."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def read(cls, file: Path) -> Self:
        """The options of a run.

        Raises:
            InputError: If the file is not such a configuration.
        """
        try:
            values: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, TypeError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file}: not the configuration of a run of {cls.COMMAND} ({str(error).splitlines()[0]})"
            ) from error

    def differences(self, other: Self) -> list[str]:
        """Options that another run may not share with this one, in words."""
        return [
            f"--{f.name} is {getattr(self, f.name)!r} there and {getattr(other, f.name)!r} here"
            for f in fields(self)
            if f.name not in CHANGEABLE and getattr(self, f.name) != getattr(other, f.name)
        ]


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """Options of `patnet train`.

    Args:
        data: Data set: elpv, elpv-levels, elpv-painted (defects to find, for a network to start from), a folder of
            class folders (or with train/ and val/), or a name that timm's create_dataset takes, such as torch/cifar10.
        model: Name of the model, one of ours or of timm's.
        model_args: Further arguments of the model, such as partial_ratio, channel_attn or mixers.
        weights: Checkpoint to start from in place of random weights.
        size: Side of the pictures in px.
        early_size: Side of the training pictures in the first epochs; none for the same in all.
        early_epochs: How many epochs those are.
        in_chans: Channels of the pictures, 3 for colour, 1 for grey.
        min_lr: Learning rate at the end of the cosine.
        warmup_epochs: Epochs of linear warm-up from 1e-6.
        layer_decay: Factor of the learning rate from each layer to the one before it; none for the same in all.
        freeze_stages: Keep the stem and so many stages, norms included, as they are.
        balance: Make up for classes of uneven size by weights in the loss or by drawing as often from each class.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mixup_prob: Probability of either for a batch.
        mixup_switch_prob: Probability of CutMix where both are on.
        teacher: Model to distil from, a checkpoint or the name of one of timm's with weights.
        distillation: Follow the teacher's answer or its probabilities.
        distill_alpha: Weight of the teacher in the loss.
        distill_tau: Temperature of its probabilities.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth; none for the model's own.
        min_area: Least share of a picture's area that a random crop keeps.
        quarter_turns: Probability of a turn by 90 degrees.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm such as rand-m7-mstd0.5-inc1, in place of color_jitter.
        random_erase: Probability of erasing a random rectangle.
        aug_repeats: Repeated augmentation, how often a picture comes in an epoch; a share of the others then does not.
        crop_pct: Share of the picture's side that evaluation sees.
        data_root: Where timm finds or keeps its data sets.
        train_split: Name of the training split of a data set of timm's.
        val_split: Name of its validation split.
        val_fraction: Share of the training pictures that chooses the best epoch, where the data set has no such split.
        num_classes: Number of classes, for a data set of timm's that does not say it.
        cache_size: Keep a built-in data set reduced to this side in px; faster with many epochs.
        cache_dir: Where to keep it.
        compile: Compile the network with torch.compile.
    """

    data: str
    COMMAND = "patnet train"

    model: str = "patnet_t0"
    model_args: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    size: int = 224
    early_size: int | None = None
    early_epochs: int = 0
    in_chans: int = 3
    min_lr: float = 1e-5
    warmup_epochs: float = 2
    layer_decay: float | None = None
    freeze_stages: int = 0
    balance: Literal["none", "weights", "sampling"] = "none"
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    teacher: str | None = None
    distillation: Literal["hard", "soft"] = "hard"
    distill_alpha: float = 0.5
    distill_tau: float = 1.0
    drop_rate: float = 0.0
    drop_path_rate: float | None = None
    min_area: float = 0.35
    quarter_turns: float = 0.0
    color_jitter: float = 0.2
    auto_augment: str | None = None
    random_erase: float = 0.0
    aug_repeats: int = 1
    crop_pct: float = 0.9
    data_root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    val_fraction: float = 0.1
    num_classes: int | None = None
    cache_size: int | None = None
    cache_dir: str | None = None
    compile: bool = False

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
        self.check_range(
            {
                "size": 32,
                "early_size": 32,
                "early_epochs": 0,
                "aug_repeats": 1,
                "freeze_stages": 0,
                "warmup_epochs": 0,
                "min_lr": 0,
                "color_jitter": 0,
                "mixup": 0,
                "cutmix": 0,
            },
            positive=("crop_pct", "min_area", "distill_tau", "layer_decay"),
            shares=(
                "label_smoothing",
                "drop_rate",
                "quarter_turns",
                "random_erase",
                "min_area",
                "mixup_prob",
                "mixup_switch_prob",
                "distill_alpha",
                "layer_decay",
                "crop_pct",
            ),
        )
        if self.warmup_epochs >= self.epochs:
            raise InputError(
                f"--warmup_epochs {self.warmup_epochs}: leaves none of {self.epochs} epochs after it; "
                "lower it or raise --epochs"
            )
        if self.early_epochs and self.early_size is None:
            raise InputError(f"--early_epochs {self.early_epochs}: give --early_size too, the size in those epochs")
        if self.balance == "sampling" and self.aug_repeats > 1:
            raise InputError(
                "--balance sampling and --aug_repeats: choose one of them, both decide how often a picture comes"
            )
        if (self.mixup or self.cutmix) and self.batch_size != "auto" and self.batch_size % 2:
            raise InputError(f"--batch_size {self.batch_size}: must be even for --mixup and --cutmix, which make pairs")
        if self.cache_size is not None and self.cache_size < self.size:
            raise InputError(f"--cache_size {self.cache_size}: is below --size {self.size}; set at least that")
