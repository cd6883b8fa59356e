"""Training a detector: what a step is, and `train`, which runs it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR
from torchmetrics import MeanMetric, MetricCollection

from ..data import Unreadable
from ..data.loading import PADDING
from ..errors import InputError
from ..models import read_checkpoint
from ..train import RunDirectory, RunModule, RunResult, fit
from ..train.figures import Panel
from ..train.module import create_optimizer
from .build import DETECTORS, build
from .checkpoint import load_matching, read_description, save_detector
from .config import DetectConfig
from .data import DetectionData
from .metrics import coco_metrics, coco_results, gather_results

COMPUTING = 3  # last part of the seed of a step
# The losses of all detectors, as the curves name them.
LOSSES = {"loss": "sum"} | {
    name: name.removeprefix("loss_").replace("_", " ") for entry in DETECTORS.values() for name in entry.losses
}


def train(
    config: DetectConfig, *, resume: bool = False, strict_warmup: bool = False, console: Console | None = None
) -> RunResult:
    """Train a detector, see `patnet.train.fit`.

    A warm-up that leaves no step after it is shortened, or refused with `strict_warmup`.

    Raises:
        InputError: If the options, the data or the directory cannot be used.
        patnet.train.Interrupted: On Ctrl-C, SIGTERM and SIGUSR1, after a checkpoint.
    """
    config.check()
    if config.in_chans is None:  # of the images, which the data have to know before the network is built
        channels = RunDirectory(config.out).read_config(DetectConfig).in_chans if resume else _in_chans(config)
        config = replace(config, in_chans=channels)

    def make_module(data: DetectionData, checkpoint: Path | None) -> DetectorModule:
        if strict_warmup and not resume and config.warmup_steps >= data.steps:
            raise InputError(f"--warmup-steps {config.warmup_steps}: must be less than the run's {data.steps} steps")
        return DetectorModule(config, build_detector(config, len(data.splits.train.categories), checkpoint), data)

    return fit(config, DetectionData(config), make_module, resume=resume, console=console)


def _in_chans(config: DetectConfig) -> int:
    """Channels of the images that the weights of a run take, or 3."""
    args: dict[str, Any] = {}
    if config.detector_weights:
        args = read_description(config.detector_weights)["build"]["backbone_kwargs"]
    elif config.start:
        args = read_checkpoint(config.start)[1].get("model_args", {})
    return int({**args, **config.backbone_kwargs}.get("in_chans", 3))


def build_detector(config: DetectConfig, num_classes: int, checkpoint: Path | None = None) -> Any:
    """The detector of a run, with the weights that a new run starts from.

    A resumed run gives its checkpoint, since the weights that it started from may be gone.

    Raises:
        InputError: If the detector does not take the options or the weights.
    """
    if checkpoint:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        model: Any = build(**saved["hyper_parameters"]["build"])
    else:
        model = _build_new(config, num_classes)
    if config.grad_checkpointing:
        try:
            model.backbone.body.model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise InputError(f"--grad-checkpointing: {config.backbone} does not have it; leave it out") from error
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _build_new(config: DetectConfig, num_classes: int) -> Any:
    start = read_description(config.detector_weights)["build"] if config.detector_weights else {}
    kept = {key: start[key] for key in ("image_mean", "image_std") if len(start.get(key) or ()) == config.in_chans}
    try:
        model = build(
            config.detector,
            backbone=config.backbone,
            num_classes=num_classes,
            weights=config.start,
            norm=config.norm or start.get("norm"),
            backbone_kwargs={**start.get("backbone_kwargs", {}), **config.backbone_kwargs, "in_chans": config.in_chans},
            width=config.width,
            min_size=[*config.train_min_sizes, config.min_size],
            max_size=config.max_size,
            **{**kept, **config.detector_kwargs},
        )
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"--detector {config.detector}: does not take these options ({error})") from error
    if config.detector_weights is not None:
        load_matching(model, config.detector_weights)
    return model


class DetectorModule(RunModule):
    """A detector of `patnet.detection.build`, trained with the sum of its losses."""

    curves = (
        Panel("Training losses", "loss", {f"train_{name}": label for name, label in LOSSES.items()}, log=True),
        Panel(
            "Validation",
            "average precision",
            {f"val_{iou}_{name}": f"{iou} {name}" for iou in ("box", "mask") for name in ("AP", "AP50", "AP75")},
        ),
    )

    def __init__(self, config: DetectConfig, model: Any, data: DetectionData) -> None:
        super().__init__(config, model)
        self.classes, self.validation = data.splits.train.categories, data.splits.val
        self.steps, self.steps_per_epoch = data.steps, data.steps_per_epoch
        self.losses = DETECTORS[config.detector].losses
        self.title = f"{config.detector} with {config.backbone} on {config.data}, {config.min_size} px"
        masks = "loss_mask" in self.losses and (self.validation is None or self.validation.has_masks)
        self.watched = ("val_mask_AP" if masks else "val_box_AP", "max")
        metrics: dict[str, Any] = {name: MeanMetric(nan_strategy="ignore") for name in ("loss", *self.losses)}
        self.train_metrics = MetricCollection(metrics, prefix="train_", compute_groups=False)
        self.results: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, Any]] = []  # ids of validation images

    def monitor(self, row: dict[str, Any]) -> Any:
        """Average precision of the masks, else of the boxes."""
        return row.get("val_mask_AP", row.get("val_box_AP"))

    def summary(self, row: dict[str, Any]) -> str:
        """Average precision of an epoch in words."""
        found = [i for i in ("box", "mask") if f"val_{i}_AP" in row]
        return "  ".join(f"val {i} AP {row[f'val_{i}_AP']:.3f} (AP50 {row[f'val_{i}_AP50']:.3f})" for i in found)

    def save(self, model: Any, directory: Path) -> None:
        """Write a checkpoint directory that `patnet.load` reads."""
        save_detector(model, directory, class_names=list(self.classes.values()), category_ids=list(self.classes))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the arguments that build the detector."""
        checkpoint["hyper_parameters"] = {"build": self.model.build_args}
        super().on_save_checkpoint(checkpoint)

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, targets, _ = batch
        self.seed_step(COMPUTING, batch_idx)
        losses = self.model(images, targets)
        loss = sum(losses.values())
        for name, value in {"loss": loss, **losses}.items():
            self.train_metrics[name].update(value.detach(), len(images))
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """Keep the detections of a batch."""
        images, targets, indices = batch
        detections = self.eval_model(images)
        for found, target, index in zip(detections, targets, indices, strict=True):
            if index == PADDING:
                continue
            if isinstance(target, Unreadable):
                assert self.validation is not None
                self.unreadable.append({"image_id": self.validation.images[index].id})
            else:
                self.results += coco_results(target["image_id"], found, list(self.classes))

    def on_validation_epoch_end(self) -> None:
        """Compute the average precision."""
        results, unreadable = gather_results(self.results), gather_results(self.unreadable)
        self.results, self.unreadable = [], []
        assert self.validation is not None
        truth = self.validation.without({image["image_id"] for image in unreadable})
        metrics = coco_metrics(truth, results, masks="loss_mask" in self.losses and self.validation.has_masks)
        for iou_type, found in metrics.items():
            for name in ("AP", "AP50", "AP75"):
                self.log(f"val_{iou_type}_{name}", float("nan") if found[name] is None else found[name])

    def configure_optimizers(self) -> Any:
        """The optimiser, with weight decay on all weights as in the authors' configuration, and the schedule."""
        c: DetectConfig = self.config
        optimizer = create_optimizer(c, self.model, filter_bias_and_bn=False)
        warmup = c.warmup_steps if c.warmup_steps < self.steps else self.steps // 2
        schedulers: list[LRScheduler] = [LinearLR(optimizer, c.warmup_factor, total_iters=warmup)] if warmup else []
        if c.schedule == "cosine":
            schedulers.append(CosineAnnealingLR(optimizer, self.steps))
        else:
            schedulers.append(MultiStepLR(optimizer, [self.steps_per_epoch * epoch for epoch in c.lr_steps], 0.1))
        schedule: Any = ChainedScheduler(schedulers, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
