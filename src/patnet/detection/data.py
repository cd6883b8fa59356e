"""The data of a detector's training run: annotated images for training and validation, and their loaders."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import DetectionDataset, open_annotations
from ..data.annotations import AnnotatedImage, Annotations
from ..data.batches import AspectRatioBatches
from ..data.detection import detection_transform
from ..data.loading import SeededDataset, TrainLoader, eval_loader
from ..errors import InputError
from ..train import RunData
from .config import DetectConfig

SPLIT = 103  # last part of a seed, so that the same numbers draw other random numbers elsewhere


class DetectionSplits(NamedTuple):
    """The annotations of a run: those to train on, and those that choose the best epoch, if any."""

    train: Annotations
    val: Annotations | None


def open_validation(config: DetectConfig) -> Annotations | None:
    """The annotations that a run is given for validation; None where it holds out training images, or none.

    Raises:
        InputError: If they cannot be read.
    """
    c = config
    if c.val_data is None and c.val_split is None:
        return None
    images = c.val_images or (c.images if c.val_data is None else None)
    return open_annotations(c.val_data or c.data, images, split=c.val_split, max_invalid=c.max_invalid)


def open_splits(config: DetectConfig) -> DetectionSplits:
    """The annotations of a run.

    Raises:
        InputError: If they cannot be read, or do not fit each other or the detector.
    """
    c = config
    split = c.train_split if Path(c.data).is_dir() else None
    train = open_annotations(c.data, c.images, split=split, max_invalid=c.max_invalid)
    val = open_validation(c)
    if val is not None:
        if val.categories != train.categories:
            raise InputError(
                f"{val.source}: its categories ({_listed(val)}) are not those of {train.source} ({_listed(train)}); "
                "give annotations with the same ids and names"
            )
    elif c.val_fraction:
        train, val = _hold_out(train, c.val_fraction, c.seed)
    for name, part in (("training", train), ("validation", val)):
        if part is not None and not any(_trained_on(image) for image in part.images):
            raise InputError(f"{part.source}: the {len(part.images)} {name} images have no objects; give others")
    if c.num_classes not in (None, len(train.categories)):
        raise InputError(
            f"--num-classes {c.num_classes}: {train.source} has {len(train.categories)} ({_listed(train)}); "
            f"give {len(train.categories)}, or leave it out"
        )
    if c.detector == "mask_rcnn" and not train.has_masks:
        raise InputError(f"{train.source}: an object has no mask; train --detector faster_rcnn or retinanet")
    if not c.keep_empty:
        train = replace(train, images=[image for image in train.images if _trained_on(image)])
    return DetectionSplits(train, val)


def _trained_on(image: AnnotatedImage) -> bool:
    """Whether an image has objects other than crowds, which are left out in training."""
    return any(not found.crowd for found in image.objects)


def _listed(annotations: Annotations) -> str:
    names = [f"{number} {name}" for number, name in annotations.categories.items()]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _hold_out(annotations: Annotations, fraction: float, seed: int) -> tuple[Annotations, Annotations]:
    """The annotations without a random share of their images, and that share."""
    images = annotations.images
    count, number = len(images), round(fraction * len(images))
    if not 0 < number < count:
        raise InputError(
            f"--val-fraction {fraction}: is {number} of the {count} images in {annotations.source}; "
            "give another, or 0 for no validation"
        )
    order = np.random.default_rng((seed, SPLIT)).permutation(count)
    train, val = ([images[i] for i in sorted(part)] for part in (order[number:], order[:number]))
    return replace(annotations, images=train), replace(annotations, images=val)


class DetectionData(RunData):
    """Annotated images, grey where the configuration's `in_chans` is 1, else RGB."""

    @cached_property
    def splits(self) -> DetectionSplits:
        """The annotations, read when they are needed."""
        return open_splits(self.config)

    @property
    def train_size(self) -> int:
        """Training images in an epoch."""
        return len(self.splits.train.images)

    @property
    def val_size(self) -> int:
        """Validation images."""
        return len(self.splits.val.images) if self.splits.val else 0

    def _dataset(self, annotations: Annotations, **kwargs: Any) -> DetectionDataset:
        return DetectionDataset(annotations, mode="L" if self.config.in_chans == 1 else "RGB", **kwargs)

    @property
    def _options(self) -> dict[str, Any]:
        return {"num_workers": self.config.workers, "persistent_workers": self.config.workers > 0}

    def train_loader(self) -> TrainLoader:
        """The training batches of this process."""
        c = self.config
        dataset = self._dataset(self.splits.train, masks=c.detector == "mask_rcnn", crowd=False)
        transforms = [(0, detection_transform(c.hflip, c.vflip))]
        seeded = SeededDataset(dataset, c.seed, transforms, strict=c.strict, joint=True, stack=False)
        batches = AspectRatioBatches(dataset.ratios, self.batches, c.seed, rank=self.rank)
        return TrainLoader(seeded, batches, **self._options)

    def val_dataloader(self) -> Any:
        """The validation batches of this process; none without validation."""
        if self.splits.val is None:
            return []
        dataset, batches = self._dataset(self.splits.val, masks=False), self.batches
        options: dict[str, Any] = {
            "policy": self.policy,
            "joint": True,
            "stack": False,
            "world": batches.devices,
            "rank": self.rank,
            **self._options,
        }
        return eval_loader(dataset, batches.batch_size, transform=detection_transform(), **options)

    def identity(self) -> Iterable[str]:
        """The class names, and the files with their sizes and boxes."""
        yield repr(self.splits.train.class_names)
        for image in self.splits.train.images:
            yield f"{image.path.name} {image.width} {image.height} {[(o.category, o.box) for o in image.objects]}"

    def notices(self) -> list[str]:
        """How many annotations are skipped."""
        source, faults = self.splits.train.source, self.splits.train.faults
        return [f"{len(faults)} invalid annotations in {source} are skipped, for example {faults[0]}"] if faults else []
