"""The options of training runs, as `config.yaml` of a run directory has them."""

import json
from argparse import ArgumentError
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, Union, get_args, get_origin, get_type_hints

import timm
import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import ClosedUnitInterval as Probability
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, restricted_number_type
from timm.optim import get_optimizer_info, list_optimizers

from ..errors import InputError, nearest
from ..models import hub_name

if TYPE_CHECKING:  # jsonargparse makes its types at run time, where no type checker sees them
    ImageSize: TypeAlias = int
    Share: TypeAlias = float
else:
    ImageSize = restricted_number_type("ImageSize", int, (">=", 32))
    Share = restricted_number_type("Share", float, [(">", 0), ("<=", 1)])

TYPES: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "text",
    NoneType: "null",
    PositiveInt: "an integer above 0",
    NonNegativeInt: "an integer of at least 0",
    ImageSize: "an integer of at least 32",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of at least 0",
    Probability: "a number in [0, 1]",
    Share: "a number above 0 and at most 1",
}

# Options that say where and how fast a run computes, not what it computes: a resumed run may change them.
CHANGEABLE = {"out", "data_root", "cache_dir", "workers", "checkpoint_minutes", "wandb_project"}
CHANGEABLE |= {"accelerator", "devices", "num_nodes", "strategy"}


def describe_type(hint: Any) -> str:
    """What a value of a type is, in words: `"an integer above 0 or auto"`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(describe_type, arguments)))
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (tuple, list):
        number = f"{len(arguments)} values" if origin is tuple else "a list of values"
        return f"{number}, each {describe_type(arguments[0])}"
    return "a mapping of names to values" if dict in (hint, origin) else TYPES.get(hint, str(hint))


def check_option(name: str, value: Any, hint: Any) -> None:
    """Check the type and the range of an option's value.

    Raises:
        InputError: If the value does not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": deepcopy(value)})  # it changes the items of a list
    except ArgumentError as error:
        raise InputError(f"--{name.replace('_', '-')} {value}: must be {describe_type(hint)}") from error


@dataclass(kw_only=True)
class RunConfig:
    """The options that all runs have.

    Args:
        data: Data set.
        out: Run directory, created by the run.
        epochs: Number of epochs.
        batch_size: Images that a device computes at once; auto for as many as fit.
        global_batch_size: Images per optimiser step on all devices, reached by gradient accumulation.
        opt: Optimiser, a name of timm's.
        lr: Maximum learning rate.
        weight_decay: Weight decay, of matrices only.
        model_ema_decay: Decay of an exponential moving average (EMA) of the weights, which is then evaluated and saved.
        clip_grad: Maximum gradient norm.
        max_nonfinite: Consecutive steps with a gradient that is not finite, each skipped, after which the run stops.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        max_unreadable: Share of the images that may be unreadable and are left out.
        strict: Stop at the first image that cannot be read.
        workers: Loader processes per device.
        accelerator: Device type, as Lightning names it.
        devices: Number of devices per machine, or a list such as 0,1.
        num_nodes: Number of machines.
        strategy: Lightning's strategy for several devices, such as ddp; fsdp also shards the weights.
        sync_bn: Compute the statistics of BatchNorm over all devices; GPUs only.
        precision: Precision, as Lightning names it.
        channels_last: Store images and weights in channels-last memory format.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
        checkpoint_minutes: Minutes between two checkpoints within an epoch; each epoch ends with one too.
        wandb_project: Project of Weights & Biases to log to.
        patience: Epochs without a better validation result after which the run stops early.
        seed: Random seed of the weights, the data order, the augmentation and the validation split.
    """

    COMMAND: ClassVar[str]

    data: str
    out: str
    epochs: PositiveInt = 30
    batch_size: PositiveInt | Literal["auto"] = 64
    global_batch_size: PositiveInt | None = None
    opt: str = "adamw"
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.05
    model_ema_decay: Probability | None = None
    clip_grad: PositiveFloat | None = None
    max_nonfinite: PositiveInt = 10
    hflip: Probability = 0.5
    vflip: Probability = 0.0
    max_unreadable: Probability = 0.01
    strict: bool = False
    workers: NonNegativeInt = 2
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    sync_bn: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    grad_checkpointing: bool = False
    checkpoint_minutes: PositiveFloat = 10.0
    wandb_project: str | None = None
    patience: PositiveInt | None = None
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        vars(self).update(json.loads(json.dumps(asdict(self), default=str)))  # YAML refuses the types of the parser

    def check(self) -> None:
        """Check the options without the data: types, ranges, and what relates several options.

        Raises:
            InputError: For the first option that cannot be used.
        """
        hints = get_type_hints(type(self))
        for option in fields(self):
            check_option(option.name, getattr(self, option.name), hints[option.name])
        optimizers = [str(name) for name in list_optimizers()]
        if self.opt.lower() not in optimizers:
            raise InputError(f"--opt {self.opt}: timm has no such optimiser{nearest(self.opt, optimizers)}")
        if get_optimizer_info(self.opt.lower()).second_order:
            raise InputError(f"--opt {self.opt}: needs second derivatives, which training does not compute")

    def to_yaml(self) -> str:
        """All options, as `--config` reads them."""
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def read(cls, file: Path) -> Self:
        """The options of a run.

        Raises:
            InputError: If the file is not a configuration of such a run.
        """
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, as_group=False)
        try:
            options = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(options, dict):
                raise ValueError("no options in it")
            return cls(**parser.parse_object(options).as_dict())
        except (OSError, TypeError, ValueError, RecursionError, ArgumentError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: not the configuration of a run of {cls.COMMAND} ({reason})") from error

    def differences(self, other: Self) -> list[str]:
        """One line for each option that differs from another run's and may not be changed on resume."""
        ours, theirs = asdict(self), asdict(other)
        return [
            f"--{name.replace('_', '-')} is {value!r} there and {theirs[name]!r} here"
            for name, value in ours.items()
            if name not in CHANGEABLE and value != theirs[name]
        ]


@dataclass(kw_only=True)
class TrainConfig(RunConfig):
    """The options of `patnet train`.

    Args:
        data: Data set: elpv, elpv-levels, fashion-mnist, a folder of class folders (or with train/ and val/), or a
            name that timm's create_dataset takes, such as torch/cifar10.
        model: Name of the model, ours or timm's.
        model_kwargs: Further arguments of the model, such as partial_ratio, channel_attn or mixers.
        pretrained: Start from timm's weights of the model, from the Hugging Face Hub.
        weights: Checkpoint to start from, a file of weights, hf-hub:OWNER/NAME, or efficientnet-lite2; by default
            random weights.
        mean: Mean of the images' channels in [0, 1]; by default that of the weights, else of the data set.
        std: Std of the images' channels; by default that of the weights, else of the data set.
        img_size: Side of the images in px.
        progressive_size: Side of the training images in the first epochs (progressive resizing).
        progressive_epochs: Number of first epochs at `progressive_size`.
        in_chans: Channels of the images, 3 for RGB, 1 for grey.
        min_lr: Learning rate at the end of the cosine schedule, or lr if that is lower.
        warmup_epochs: Epochs of linear warm-up from 1e-6; 2 by default, and half of a run that is not longer.
        layer_decay: Factor of the learning rate from each layer to the one before it.
        freeze_stages: Number of stages to freeze, including the stem and the statistics of norms.
        head_epochs: Number of first epochs that train the classifier alone.
        balance: Balance classes of different size by weights in the loss or by sampling.
        smoothing: Label smoothing.
        mixup: Alpha of Mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mixup_prob: Probability of Mixup or CutMix for a batch.
        mixup_switch_prob: Probability of CutMix instead of Mixup where both are on.
        teacher: Teacher of a distillation, a checkpoint or a pretrained model of timm's; --data may then be a folder
            of images without classes.
        distillation: Hard distillation (the teacher's class) or soft (its probabilities).
        distill_alpha: Weight of the distillation loss of the logits.
        distill_features: Weight of the distillation loss of the last feature maps.
        distill_tau: Temperature of soft distillation.
        drop: Dropout rate before the classifier.
        drop_path: Rate of stochastic depth; the model's own by default.
        scale: Smallest and largest share of the area that a random-resized crop keeps.
        rot90: Probability of a rotation by 90 degrees.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: AutoAugment policy of timm's such as rand-m7-mstd0.5-inc1, instead of color jitter.
        reprob: Probability of random erasing.
        aug_repeats: Repeated augmentation: how often an image comes in an epoch, which then lacks others.
        crop_pct: Share of the image's side that evaluation crops.
        data_root: Folder of timm's data sets, or of the files of fashion-mnist.
        train_split: Training split of a data set of timm's.
        val_split: Validation split of a data set of timm's.
        val_fraction: Share of the training images held out for validation, where the data set has no such split.
        num_classes: Number of classes, for a data set of timm's that does not state it.
        cache_size: Cache a built-in data set at this side in px; faster over many epochs.
        cache_dir: Folder of the cache.
        torchcompile: Compile the model with torch.compile.
    """

    COMMAND = "patnet train"

    data: str
    model: str = "patnet_t0"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: str | None = None
    mean: list[Probability] | None = None
    std: list[PositiveFloat] | None = None
    img_size: ImageSize = 224
    progressive_size: ImageSize | None = None
    progressive_epochs: NonNegativeInt = 0
    in_chans: PositiveInt = 3
    min_lr: NonNegativeFloat = 1e-5
    warmup_epochs: NonNegativeFloat | None = None
    layer_decay: Share | None = None
    freeze_stages: NonNegativeInt = 0
    head_epochs: NonNegativeInt = 0
    balance: Literal["none", "weights", "sampling"] = "none"
    smoothing: Probability = 0.1
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mixup_prob: Probability = 1.0
    mixup_switch_prob: Probability = 0.5
    teacher: str | None = None
    distillation: Literal["hard", "soft"] = "hard"
    distill_alpha: Probability = 0.5
    distill_features: NonNegativeFloat = 0.0
    distill_tau: PositiveFloat = 1.0
    drop: Probability = 0.0
    drop_path: Probability | None = None
    scale: tuple[Share, Share] = (0.35, 1.0)
    rot90: Probability = 0.0
    color_jitter: NonNegativeFloat = 0.2
    aa: str | None = None
    reprob: Probability = 0.0
    aug_repeats: PositiveInt = 1
    crop_pct: Share = 0.9
    data_root: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    val_fraction: Probability = 0.1
    num_classes: PositiveInt | None = None
    cache_size: PositiveInt | None = None
    cache_dir: str | None = None
    torchcompile: bool = False

    @property
    def start(self) -> str | None:
        """The weights to start from, as `patnet.load_weights` takes them; None for random ones."""
        return hub_name(self.model) if self.pretrained else self.weights

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, which leave epochs after it."""
        warmup = 2 if self.warmup_epochs is None else self.warmup_epochs
        return warmup if warmup < self.epochs else self.epochs / 2

    def check(self) -> None:
        """Check the options without the data, see `RunConfig.check`."""
        super().check()
        if not timm.is_model(self.model):
            hint = nearest(self.model, timm.list_models())
            raise InputError(f"--model {self.model}: no such model{hint}; patnet models lists the family")
        if self.pretrained and self.weights:
            raise InputError(f"--pretrained and --weights {self.weights}: choose one")
        if self.pretrained:
            hub_name(self.model)
        for option, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.in_chans:
                raise InputError(f"--{option} {' '.join(map(str, values))}: give {self.in_chans}, one for each channel")
        if self.head_epochs >= self.epochs:
            raise InputError(f"--head-epochs {self.head_epochs}: must be less than --epochs {self.epochs}")
        if (self.distill_features or self.teacher) and not (
            self.teacher and (self.distill_alpha or self.distill_features)
        ):
            raise InputError("--teacher, and --distill-alpha or --distill-features above 0: belong together")
        if self.distill_features and self.strategy == "fsdp":
            raise InputError("--distill-features: its projection is not sharded; leave out --strategy fsdp")
        if (self.mean is None) is not (self.std is None):
            raise InputError("--mean and --std: belong together; give both")
        if bool(self.progressive_epochs) is not bool(self.progressive_size):
            raise InputError("--progressive-size and --progressive-epochs: belong together; give both")
        if self.scale[0] > self.scale[1]:
            raise InputError(f"--scale {self.scale[0]} {self.scale[1]}: give the smaller share first")
        if self.balance == "sampling" and self.aug_repeats > 1:
            raise InputError("--balance sampling and --aug-repeats: choose one, as both set how often an image comes")
        if (self.mixup or self.cutmix) and self.batch_size != "auto" and self.batch_size % 2:
            raise InputError(f"--batch-size {self.batch_size}: must be even for --mixup and --cutmix, which make pairs")
        if self.cache_size is not None and self.cache_size < self.img_size:
            raise InputError(f"--cache-size {self.cache_size}: must be at least --img-size {self.img_size}")
