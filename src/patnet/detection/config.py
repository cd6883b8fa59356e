"""The options of a detector's training, as they stand in its `config.yaml`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import timm

from ..errors import InputError, nearest
from ..train.config import RunConfig
from .build import DETECTORS

__all__ = ["DetectConfig"]


@dataclass(kw_only=True)
class DetectConfig(RunConfig):
    """Options of `patnet detect train`.

    Args:
        data: Annotations in COCO's format, a folder as COCO 2017 unpacks, or one in Pascal VOC's format.
        images: Folder of the pictures, if not the usual one.
        train_split: Of a folder, which pictures to train on.
        val_data: Other annotations, of the pictures that choose the best epoch.
        val_images: Folder of those pictures, if not the usual one.
        val_split: Of a folder, which pictures choose the best epoch.
        val_fraction: Share of the training pictures that does, where neither is given.
        num_classes: How many classes the data must have; none for as many as it has.
        max_faults: Share of the annotations that may be wrong, and are passed over.
        keep_empty: Train on pictures without objects too.
        detector: mask_rcnn, faster_rcnn or retinanet.
        detector_args: Further arguments of torchvision's class, such as box_score_thresh.
        backbone: Its network, one of ours or of timm's.
        backbone_args: Further arguments of the network.
        in_chans: Channels of the pictures, 3 for colour, 1 for grey; none for what the weights say, or else 3.
        weights: Checkpoint of a classifier, for the backbone to start from.
        start: Trained detector to start from; outputs for other classes start anew.
        norm: Keep the backbone's norms as they are, or train them; none to keep those of weights.
        width: Channels of the feature pyramid and of the heads.
        size: Shorter side to which pictures are resized, in px.
        train_sizes: Further ones, of which training draws one for each picture.
        max_size: Longest side that this may lead to, in px.
        batch_size: Pictures that a device computes at once.
        schedule: Divide the learning rate by ten at drop_epochs, or let it follow a cosine to 0.
        drop_epochs: After which epochs.
        warmup_steps: Steps in which the learning rate rises.
        warmup_factor: Share of the learning rate from which it rises.
        weight_decay: Weight decay, on all weights.
        channels_last: Keep weights channels-last; try which is faster on a machine.
    """

    COMMAND = "patnet detect train"

    images: str | None = None
    train_split: str = "train"
    val_data: str | None = None
    val_images: str | None = None
    val_split: str | None = None
    val_fraction: float = 0.1
    num_classes: int | None = None
    max_faults: float = 0.01
    keep_empty: bool = True
    detector: str = "mask_rcnn"
    detector_args: dict[str, Any] = field(default_factory=dict)
    backbone: str = "patnet_t0"
    backbone_args: dict[str, Any] = field(default_factory=dict)
    in_chans: int | None = None
    weights: str | None = None
    start: str | None = None
    norm: Literal["frozen", "train"] | None = None
    width: int = 256
    size: int = 800
    train_sizes: list[int] = field(default_factory=list)
    max_size: int = 1333
    batch_size: int = 2
    epochs: int = 12
    lr: float = 2e-4
    schedule: Literal["steps", "cosine"] = "steps"
    drop_epochs: list[int] = field(default_factory=lambda: [8, 11])
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    weight_decay: float = 1e-4
    channels_last: bool = False

    def check(self) -> None:
        """Check what can be checked without the data.

        Raises:
            InputError: For the first option that cannot be used.
        """
        if self.detector not in DETECTORS:
            raise InputError(
                f"--detector {self.detector}: no such detector{nearest(self.detector, DETECTORS)}; "
                f"there are {', '.join(DETECTORS)}"
            )
        if not timm.is_model(self.backbone):
            raise InputError(
                f"--backbone {self.backbone}: no such model{nearest(self.backbone, timm.list_models())}; "
                "patnet models lists the family"
            )
        self.check_range(
            {"size": 32, "max_size": 32, "width": 8, "num_classes": 1, "in_chans": 1, "warmup_steps": 0},
            positive=("warmup_factor",),
            shares=("val_fraction", "max_faults", "warmup_factor"),
        )
        for sizes in ([self.size], self.train_sizes):
            if any(not 32 <= size <= self.max_size for size in sizes):
                name = "size" if sizes == [self.size] else "train_sizes"
                raise InputError(f"--{name} {sizes}: must lie in 32 to --max_size {self.max_size} px")
        if self.val_data is not None and self.val_split is not None and self.val_data == self.data:
            raise InputError("--val_data and --val_split: leave --val_data out, for it is --data itself")
        if self.weights and self.start:
            raise InputError("--weights and --start: choose one, for a trained detector has a backbone of its own")
        if self.schedule == "steps" and any(epoch < 1 for epoch in self.drop_epochs):
            raise InputError(f"--drop_epochs {self.drop_epochs}: count epochs from 1")
