"""What a step of training, validation and prediction is; Lightning owns the loop around it."""

import math
from typing import Any

import lightning as L
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .config import TrainConfig

__all__ = ["Classifier", "build_model", "warmup_cosine"]


def warmup_cosine(step: int, steps: int, warmup: int, lr: float, min_lr: float, warmup_lr: float = 1e-6) -> float:
    """Learning rate of a step: linear from `warmup_lr` to `lr`, then a cosine to `min_lr`."""
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class Classifier(L.LightningModule):
    """A timm model with cross-entropy, AdamW or another optimiser of timm's, warm-up and cosine.

    Args:
        model: Gives logits `(N, classes)` for pictures `(N, in_chans, H, W)`.
        config: Options of the run; None for prediction alone.
    """

    def __init__(self, model: Any, config: TrainConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config
        if config is not None:
            classes = model.num_classes
            accuracy: dict[str, Metric | MetricCollection] = {"top1": MulticlassAccuracy(classes, average="micro")}
            self.train_metrics = MetricCollection(accuracy, prefix="train_")
            if classes > 5:
                accuracy["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
            self.val_metrics = MetricCollection(accuracy, prefix="val_").clone()
            self.loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which network the weights belong to, for `patnet.from_checkpoint`."""
        assert self.config is not None
        checkpoint["hyper_parameters"] = {
            "architecture": self.config.model,
            "num_classes": self.model.num_classes,
            "model_args": {
                **self.config.model_args,
                "in_chans": self.config.in_chans,
                "num_classes": self.model.num_classes,
            },
        }

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lay the pictures out channels-last where the run wants it."""
        if self.config is not None and self.config.channels_last and isinstance(batch[0], Tensor):
            return [batch[0].contiguous(memory_format=torch.channels_last), *batch[1:]]
        return batch

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, classes)`."""
        return self.model(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        pictures, labels = batch
        logits = self(pictures)
        loss = self.loss(logits, labels)
        self.train_metrics.update(logits.detach().float(), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy of a batch."""
        pictures, labels = batch
        logits = self(pictures).float()
        self.val_metrics.update(logits, labels)
        loss = nn.functional.cross_entropy(logits, labels)
        self.log("val_loss", loss, on_epoch=True, batch_size=len(labels), sync_dist=True)
        self.log_dict(self.val_metrics, on_epoch=True, batch_size=len(labels))

    def predict_step(self, batch: list[Any], batch_idx: int) -> tuple[Tensor, Any]:
        """Probabilities `(N, classes)` of the pictures, and what came with them."""
        pictures, others = batch
        return self(pictures).float().softmax(dim=1), others

    def configure_optimizers(self) -> Any:
        """The optimiser, with weight decay on matrices only, and its schedule in steps."""
        assert self.config is not None
        c = self.config
        optimizer = create_optimizer_v2(self.model, opt=c.opt, lr=c.lr, weight_decay=c.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * c.warmup_epochs / c.epochs)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, steps, warmup, c.lr, c.min_lr) / c.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The model of a run, with random weights.

    Raises:
        ValueError: If the model does not take the options.
    """
    args = dict(config.model_args)
    args |= {"num_classes": num_classes, "in_chans": config.in_chans, "drop_rate": config.drop_rate}
    if config.drop_path_rate is not None:
        args["drop_path_rate"] = config.drop_path_rate
    model = timm.create_model(config.model, **args)
    return model.to(memory_format=torch.channels_last) if config.channels_last else model
