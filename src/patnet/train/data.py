"""The data of a run: loaders of this process's batches, and the position in the epoch, from which a run resumes."""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from operator import length_hint
from pathlib import Path
from typing import Any, Self

import lightning as L
import psutil
import torch
from timm.data import resolve_data_config
from torch.utils.data import IterableDataset

from ..data import (
    DataSplits,
    Unreadable,
    eval_transform,
    is_unlabelled,
    load_unlabelled,
    open_data,
    train_transform,
)
from ..data.batches import Batches, TrainBatches
from ..data.loading import Policy, SeededDataset, TrainLoader, eval_loader
from ..data.streams import StreamLoader
from ..errors import InputError
from .callbacks import format_bytes
from .config import RunConfig, TrainConfig
from .distillation import open_teacher

FEW_STEPS = 200  # in which random weights learn next to nothing


def open_run_data(config: TrainConfig) -> DataSplits:
    """The data set of a run.

    Raises:
        InputError: If it cannot be opened, or has less than two classes.
    """
    names = ("in_chans", "data_root", "train_split", "val_split", "val_fraction", "num_classes", "cache_size")
    if config.teacher and is_unlabelled(config.data):
        options: dict[str, Any] = {"mode": "L" if config.in_chans == 1 else "RGB", "seed": config.seed}
        names_of_teacher = open_teacher(config.teacher).class_names
        splits = load_unlabelled(Path(config.data), names_of_teacher, val_fraction=config.val_fraction, **options)
    else:
        splits = open_data(config.data, **{name: getattr(config, name) for name in (*names, "cache_dir", "seed")})
    if len(splits.class_names) < 2:
        raise InputError(
            f"data set {config.data!r}: has the single class {', '.join(splits.class_names)}; a classifier needs two"
        )
    return splits


class RunData(L.LightningDataModule):
    """The data of a run; a subclass gives the sizes of its splits, `train_loader`, `val_dataloader` and `identity`.

    A training batch is `(images, labels, faults)`, with a line for each image that could not be read.

    Args:
        config: Options of the run.
        splits: Its data set; by default a subclass opens it when it is needed.

    Attributes:
        batches: How the images of a step are distributed, see `with_batches`.
    """

    splits: Any

    def __init__(self, config: RunConfig, splits: Any = None) -> None:
        super().__init__()
        self.config: Any = config
        if splits is not None:
            self.splits = splits
        self.batches = Batches(2 if config.batch_size == "auto" else config.batch_size)
        self._loader: Any = None
        self._position = {"epoch": 0, "given": 0}

    @property
    @abstractmethod
    def train_size(self) -> int:
        """Training images in an epoch."""

    @property
    @abstractmethod
    def val_size(self) -> int:
        """Validation images; 0 where a stream does not say."""

    @property
    def held_out(self) -> bool:
        """Whether there are images to evaluate the run on."""
        return self.val_dataloader() != []

    @abstractmethod
    def train_loader(self) -> Any:
        """The training batches of this process, with `state_dict` and `load_state_dict` as `TrainLoader` has them."""

    @abstractmethod
    def identity(self) -> Iterable[str]:
        """What must be the same in all processes, such as file names with labels."""

    def notices(self) -> list[str]:
        """Lines to print at the start of a run."""
        return []

    def with_batches(self, batches: Batches) -> Self:
        """The same data in other batches."""
        data = copy.copy(self)
        data.batches = batches
        return data

    @property
    def policy(self) -> Policy:
        """What to do about a validation image that cannot be read."""
        return "raise" if self.config.strict else "report"

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return max(1, self.train_size // self.batches.global_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.config.epochs * self.steps_per_epoch

    def example_batch(self, epoch: int) -> Any:
        """A training batch of an epoch."""
        loader = self.train_loader()
        loader.load_state_dict({"epoch": epoch, "given": 0})
        return next(iter(loader))

    @cached_property
    def digest(self) -> str:
        """Of what `identity` gives."""
        found = hashlib.sha256()
        for item in self.identity():
            found.update(f"{item}\n".encode(errors="surrogateescape"))
        return found.hexdigest()

    def setup(self, stage: str) -> None:
        """Check that all processes have the same data.

        Raises:
            InputError: In all processes, if one has other data than the first.
        """
        assert self.trainer is not None
        if self.trainer.world_size == 1:
            return
        own = self.train_size, self.digest
        equal = self.trainer.strategy.broadcast(own) == own
        if not self.trainer.strategy.reduce_boolean_decision(equal, all=True):
            raise InputError(
                f"the processes have different data: process {self.trainer.global_rank} has {own[0]} training images, "
                "not the same as another; give all machines the same files under --data"
            )

    def train_dataloader(self) -> Any:
        """The training batches of this process, from the position on."""
        self._loader = self.train_loader()
        self._loader.load_state_dict(self._position)
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, in steps, so that another number of devices can resume the run."""
        position = self._loader.state_dict()
        step = position["given"] // self.batches.accumulate
        state = {"epoch": position["epoch"], "step": step, "global_batch_size": self.batches.global_size}
        return state | {"images": self.train_size, "digest": self.digest}

    def check_same(self, state_dict: dict[str, Any]) -> None:
        """Check that the run that is resumed had these data.

        Raises:
            InputError: If it had others.
        """
        images, digest = (state_dict.get(name) for name in ("images", "digest"))
        if digest not in (None, self.digest) or images not in (None, self.train_size):
            raise InputError(
                f"{self.config.out}: cannot be resumed, since its data have changed: it had {images} training "
                f"images, {self.config.data} has {self.train_size} or others now; restore them, or give another --out"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from that position. Lightning itself would restore loaders only within an epoch.

        Raises:
            InputError: If the run's steps had another global batch size.
        """
        if state_dict["global_batch_size"] != self.batches.global_size:
            raise InputError(
                f"{self.config.out}: its global batch size is {state_dict['global_batch_size']}, here it would be "
                f"{self.batches.global_size} ({self.batches}); resume it on as many devices, or start runs with "
                "--global-batch-size"
            )
        self._position = {"epoch": state_dict["epoch"], "given": state_dict["step"] * self.batches.accumulate}


class ClassificationData(RunData):
    """Images with labels."""

    @cached_property
    def splits(self) -> DataSplits:
        """The splits of the data set."""
        return open_run_data(self.config)

    @property
    def train_size(self) -> int:
        """Training images in an epoch."""
        return len(self.splits.train)

    @property
    def val_size(self) -> int:
        """Validation images; 0 where a stream does not say."""
        return length_hint(self.splits.val or ())

    @property
    def held_out(self) -> bool:
        """Whether there are validation or test images with labels."""
        return self.splits.labelled and (super().held_out or self.splits.test is not None)

    @cached_property
    def data_config(self) -> dict[str, Any]:
        """The preprocessing: timm's, with the mean and std of the options, else of the data set where it has them."""
        channels, splits = self.config.in_chans, self.splits
        defaults = resolve_data_config({"in_chans": channels}, pretrained_cfg={})
        mean, std = defaults["mean"], defaults["std"]
        if self.config.mean is not None and self.config.std is not None:
            mean, std = tuple(self.config.mean), tuple(self.config.std)
        elif splits.mean is not None and splits.std is not None:
            mean, std = (splits.mean,) * channels, (splits.std,) * channels
        elif channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        return {
            "input_size": (channels, self.config.img_size, self.config.img_size),
            "interpolation": "bicubic",
            "mean": tuple(mean),
            "std": tuple(std),
            "crop_pct": self.config.crop_pct,
            "crop_mode": "center",
        }

    def train_transform(self, img_size: int) -> Callable:
        """The augmentation at an image size.

        Raises:
            InputError: If timm has no such policy.
        """
        c = self.config
        names = ("scale", "hflip", "vflip", "rot90", "color_jitter", "aa", "reprob")
        data_config = {**self.data_config, "input_size": (c.in_chans, img_size, img_size)}
        try:
            return train_transform(data_config, **{name: getattr(c, name) for name in names})
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(f"--aa {c.aa}: timm has no such policy; try rand-m7-mstd0.5-inc1") from error

    def labels(self) -> list[int]:
        """The labels of the training images.

        Raises:
            InputError: If the data set has no list of them.
        """
        train: Any = self.splits.train if self.splits.labelled else None
        samples = getattr(train, "samples", None) or getattr(getattr(train, "reader", None), "samples", None)
        if samples is None:
            raise InputError("--balance: this data set has no list of its labels; leave it out")
        return [int(label) for _, label in samples]

    def class_weights(self) -> torch.Tensor:
        """A weight for each class, inversely proportional to its number of images, with mean 1 over the images."""
        labels, classes = self.labels(), len(self.splits.class_names)
        counts = torch.bincount(torch.tensor(labels), minlength=classes).clamp_min(1)
        return len(labels) / (classes * counts.float())

    def train_loader(self) -> TrainLoader:
        """The training batches of this process.

        Raises:
            InputError: If the options do not suit the data set, or an epoch has less than one global batch.
        """
        c, dataset, count = self.config, self.splits.train, self.train_size
        transforms = [(0, self.train_transform(c.img_size))]
        if c.progressive_epochs:
            transforms = [(0, self.train_transform(c.progressive_size)), (c.progressive_epochs, transforms[0][1])]
        options = {"num_workers": c.workers, "pin_memory": c.accelerator != "cpu"}
        if isinstance(dataset, IterableDataset):
            if c.balance == "sampling" or c.aug_repeats > 1:
                raise InputError(f"data set {c.data!r}: is a stream; leave out --balance sampling and --aug-repeats")
            return StreamLoader(dataset, count, self.batches, c.seed, transforms, rank=self.rank, **options)
        if (c.mixup or c.cutmix) and min(count, self.batches.batch_size) % 2:
            raise InputError(
                f"--mixup and --cutmix: make pairs, but {count} training images are an odd batch; lower --batch-size"
            )
        weights = self.class_weights()[self.labels()].tolist() if c.balance == "sampling" else None
        order = {"repeats": c.aug_repeats, "weights": weights}
        batches = TrainBatches(count, self.batches, c.seed, rank=self.rank, **order)
        seeded = SeededDataset(dataset, c.seed, transforms, strict=c.strict)
        return TrainLoader(seeded, batches, persistent_workers=c.workers > 0, **options)

    def val_dataloader(self) -> Any:
        """The validation batches of this process; none without validation."""
        if self.splits.val is None:
            return []
        return eval_loader(
            self.splits.val,
            self.batches.batch_size,
            transform=eval_transform(self.data_config),
            policy=self.policy,
            world=self.batches.devices,
            rank=self.rank,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
        )

    def notices(self) -> list[str]:
        """A warning if a run from random weights has so few steps that it learns next to nothing, else none."""
        if self.steps >= FEW_STEPS or self.config.start:
            return []
        return [f"Warning: {self.steps} steps are few from random weights; raise --epochs or lower --batch-size"]

    def on_before_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """Check the labels while they are in main memory."""
        check_labels(batch[1], len(self.splits.class_names))
        return batch

    def identity(self) -> Iterable[str]:
        """The class names, and the file names with labels where the data set lists them."""
        samples = getattr(self.splits.train, "samples", [])
        return [repr(self.splits.class_names), *(f"{Path(path).name} {label}" for path, label in samples)]


def check_labels(labels: Iterable[Any], classes: int) -> None:
    """Check labels, of which those of unreadable images do not count.

    Raises:
        InputError: If one is not the number of a class.
    """
    for label in labels:
        if not isinstance(label, Unreadable) and not 0 <= int(label) < classes:
            hint = "the images of this split have no labels" if int(label) == -1 else "--num-classes says how many"
            raise InputError(f"an image has the label {int(label)}, none of the classes 0 to {classes - 1}; {hint}")


def available_memory() -> int:
    """Main memory that is free for this process in bytes: the machine's, within the limits of its control groups."""
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        for folder in (group, *group.parents[: -len(Path("/sys/fs").parts)]):
            if (folder / "memory.max").exists() and (limit := (folder / "memory.max").read_text().strip()) != "max":
                cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
                free = min(free, int(limit) - used)
    except (OSError, IndexError, ValueError):
        pass  # no control groups here, or none that may be read
    return max(0, free)


def excess_workers(workers: int, each: int) -> list[str]:
    """A warning if loader processes of `each` bytes take more memory than is free, else none."""
    free = available_memory()
    if workers * each <= free:
        return []
    return [
        f"Warning: --workers {workers}: {format_bytes(each)} each take {format_bytes(workers * each)} of "
        f"{format_bytes(free)} of free memory; {free // each} fit"
    ]
