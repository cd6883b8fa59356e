"""What a step of a detector's training and validation is; Lightning owns the loop around it."""

import math
from collections.abc import Sequence
from typing import Any

from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection

from ..data.annotations import Annotations
from ..data.loading import NOT_COUNTED
from ..train.module import RunModule
from .build import DETECTORS
from .config import DetectConfig
from .evaluation import GatheredResults, evaluate_results, results_of

__all__ = ["DetectorModule", "rate_at"]

COMPUTING = 3  # which draw of a step a seed is for


def rate_at(
    step: int, steps: int, *, schedule: str, warmup: int, warmup_factor: float, drops: Sequence[int] = ()
) -> float:
    """The learning rate of a step as a share of the highest.

    Args:
        step: From 0.
        steps: In all.
        schedule: `"steps"` for a tenth after each of `drops`, `"cosine"` for half a cosine to 0.
        warmup: Steps in which it rises on a line from `warmup_factor`, besides.
        warmup_factor: Where it starts.
        drops: Steps.
    """
    rise = warmup_factor + (1 - warmup_factor) * step / warmup if step < warmup else 1.0
    if schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return rise * 0.1 ** sum(step >= drop for drop in drops)


class DetectorModule(RunModule):
    """A detector of `patnet.detection.build`, trained by the sum of its losses.

    Args:
        model: The detector.
        config: Options of the run.
        validation: Annotations of the validation pictures, if there are any.
    """

    def __init__(self, model: Any, config: DetectConfig, validation: Annotations | None = None) -> None:
        super().__init__(model, config)
        self.validation = validation
        self.losses = DETECTORS[config.detector].losses
        self.train_metrics = MetricCollection(
            {name: MeanMetric(nan_strategy="ignore") for name in ("loss", *self.losses)},
            prefix="train_",
            compute_groups=False,
        )
        self.results = GatheredResults()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which detector the weights belong to."""
        checkpoint["hyper_parameters"] = {"build": self.model.build_args}
        super().on_save_checkpoint(checkpoint)

    def on_train_epoch_start(self) -> None:
        """Sum up anew, for the checkpoint of an epoch's end holds its sums; Lightning takes the modes as they are."""
        self.train_metrics.reset()
        self.model.train()

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        pictures, targets, _ = batch
        self.seed_step(COMPUTING, batch_idx)
        losses = self.model(pictures, targets)
        loss = sum(losses.values())
        self.train_metrics["loss"].update(loss.detach(), len(pictures))
        for name in self.losses:
            self.train_metrics[name].update(losses[name].detach(), len(pictures))
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(pictures))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """Keep what is found in the pictures of a batch."""
        assert self.validation is not None
        pictures, targets, indices = batch
        found = self.trained.eval()(pictures)
        for one, target, index in zip(found, targets, indices, strict=True):
            if index != NOT_COUNTED:
                self.results.update(results_of(target["image_id"], one, self.validation.category_ids))

    def on_validation_epoch_end(self) -> None:
        """Sum the validation up."""
        assert self.validation is not None
        results = self.results.compute()
        self.results.reset()
        masks = self.config.detector == "mask_rcnn" and self.validation.has_masks
        evaluated = evaluate_results(self.validation, results, kinds=("box", "mask") if masks else ("box",))
        for kind in ("box", "mask")[: 1 + masks]:
            for name in ("AP", "AP50", "AP75"):
                value = evaluated[kind][name]
                self.log(f"val_{kind}_{name}", float("nan") if value is None else float(value))

    def configure_optimizers(self) -> Any:
        """The optimiser, with weight decay on all weights as in the authors' configuration, and its schedule."""
        c: DetectConfig = self.config
        optimizer = create_optimizer_v2(
            self.model, opt=c.opt, lr=c.lr, weight_decay=c.weight_decay, filter_bias_and_bn=False
        )
        steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = steps / c.epochs
        drops = [round(per_epoch * epoch) for epoch in c.drop_epochs]

        def rate(step: int) -> float:
            return rate_at(
                step,
                steps,
                schedule=c.schedule,
                warmup=c.warmup_steps,
                warmup_factor=c.warmup_factor,
                drops=drops,
            )

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}
