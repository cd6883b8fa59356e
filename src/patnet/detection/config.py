"""The options of a detector's training run."""

from dataclasses import dataclass, field
from typing import Any, Literal

import timm

from ..errors import InputError, nearest
from ..models import hub_name
from ..train.config import (
    ImageSize,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    RunConfig,
    Share,
)
from .build import DETECTORS


@dataclass(kw_only=True)
class DetectConfig(RunConfig):
    """The options of `patnet detect train`.

    Args:
        data: Annotations in COCO's format, or a folder in the layout of COCO 2017, Pascal VOC, YOLO or LabelMe.
        images: Folder of the images, if not the usual one.
        train_split: Training split of a folder.
        val_data: Annotations for validation, if not in the same folder.
        val_images: Folder of the validation images, if not the usual one.
        val_split: Validation split of a folder.
        val_fraction: Share of the training images held out for validation, where neither val_data nor val_split is
            given; 0 for none.
        num_classes: Number of classes that the data must have.
        max_invalid: Share of the annotations that may be invalid and are skipped.
        keep_empty: Train on images without objects too.
        detector: Name of the detector, mask_rcnn, faster_rcnn or retinanet.
        detector_kwargs: Further arguments of torchvision's class, such as box_score_thresh.
        backbone: Name of the backbone, ours or timm's.
        backbone_kwargs: Further arguments of the backbone.
        in_chans: Channels of the images, 3 for RGB, 1 for grey; by default those of the weights, or 3.
        pretrained: Start the backbone from timm's weights of it, from the Hugging Face Hub.
        weights: Checkpoint of a classifier that the backbone starts from, such as a run, or efficientnet-lite2.
        detector_weights: Trained detector to start from; outputs for other classes are newly initialised.
        norm: Keep the backbone's norms frozen, or train them; by default frozen with pretrained weights.
        width: Channels of the feature pyramid and of the heads.
        min_size: Shorter side to which images are resized, in px.
        train_min_sizes: Further values of min_size, one of which is drawn for each training image.
        max_size: Upper limit of the longer side, in px.
        schedule: Divide the learning rate by ten after lr_steps, or follow a cosine to 0.
        lr_steps: Epochs after which the learning rate is divided by ten.
        warmup_steps: Steps of linear warm-up; half of a run that has no more steps.
        warmup_factor: Share of the learning rate at which the warm-up starts.
        weight_decay: Weight decay, of all weights.
    """

    COMMAND = "patnet detect train"

    images: str | None = None
    train_split: str = "train"
    val_data: str | None = None
    val_images: str | None = None
    val_split: str | None = None
    val_fraction: Probability = 0.1
    num_classes: PositiveInt | None = None
    max_invalid: Probability = 0.01
    keep_empty: bool = True
    detector: str = "mask_rcnn"
    detector_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone: str = "patnet_t0"
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    in_chans: PositiveInt | None = None
    pretrained: bool = False
    weights: str | None = None
    detector_weights: str | None = None
    norm: Literal["frozen", "train"] | None = None
    width: PositiveInt = 256
    min_size: ImageSize = 800
    train_min_sizes: list[ImageSize] = field(default_factory=list)
    max_size: ImageSize = 1333
    batch_size: PositiveInt | Literal["auto"] = 2
    epochs: PositiveInt = 12
    lr: PositiveFloat = 2e-4
    schedule: Literal["steps", "cosine"] = "steps"
    lr_steps: list[PositiveInt] = field(default_factory=lambda: [8, 11])
    warmup_steps: NonNegativeInt = 500
    warmup_factor: Share = 0.001
    weight_decay: NonNegativeFloat = 1e-4
    channels_last: bool = False

    @property
    def start(self) -> str | None:
        """The classifier that the backbone starts from, as `build` takes its weights; None for random ones."""
        return hub_name(self.backbone) if self.pretrained else self.weights

    def check(self) -> None:
        """Check the options without the data: types, ranges, and what relates several options.

        Raises:
            InputError: For the first option that cannot be used.
        """
        super().check()
        if self.detector not in DETECTORS:
            hint = nearest(self.detector, DETECTORS)
            raise InputError(f"--detector {self.detector}: no such detector{hint}; there are {', '.join(DETECTORS)}")
        if not timm.is_model(self.backbone):
            hint = nearest(self.backbone, timm.list_models())
            raise InputError(f"--backbone {self.backbone}: no such model{hint}; patnet models lists the family")
        if self.in_chans not in (None, 1, 3):
            raise InputError(f"--in-chans {self.in_chans}: images are read as grey (1) or RGB (3)")
        for name, sizes in (("min-size", [self.min_size]), ("train-min-sizes", self.train_min_sizes)):
            if sizes and max(sizes) > self.max_size:
                raise InputError(f"--{name} {max(sizes)}: must be at most --max-size {self.max_size}")
        if self.val_data is not None and self.val_split is not None and self.val_data == self.data:
            raise InputError("--val-data and --val-split: leave --val-data out, as it is --data itself")
        if (self.weights is not None) + (self.detector_weights is not None) + self.pretrained > 1:
            raise InputError("--pretrained, --weights and --detector-weights: choose one")
        if self.pretrained:
            hub_name(self.backbone)
