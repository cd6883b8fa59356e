"""What a step of training, validation and prediction is; Lightning owns the loop around it."""

import math
from functools import partial
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..data.loading import NOT_COUNTED, seed_all
from ..errors import InputError
from ..models.stages import stages_of
from .config import TrainConfig
from .distillation import distillation_loss
from .module import RunModule
from .views import views_of

__all__ = ["COMPUTING", "Classifier", "build_model", "warmup_cosine"]

# Which draw of a step a seed is for.
MIXING, COMPUTING = 1, 2


def warmup_cosine(step: int, steps: int, warmup: int, lr: float, min_lr: float, warmup_lr: float = 1e-6) -> float:
    """Learning rate of a step: linear from `warmup_lr` to `lr`, then a cosine to `min_lr`."""
    if step < warmup:
        return warmup_lr + (lr - warmup_lr) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def _accuracy(classes: int, top_k: int = 1) -> MulticlassAccuracy:
    return MulticlassAccuracy(classes, top_k=top_k, average="micro")


class Classifier(RunModule):
    """A timm model with cross-entropy, AdamW or another optimiser of timm's, warm-up and cosine.

    Args:
        model: Gives logits `(N, classes)` for pictures `(N, in_chans, H, W)`.
        config: Options of the run; None for prediction alone.
        teacher: To distil from.
        class_weights: `(classes,)` in the loss.
        mean: Of the pictures' normalisation, for the teacher.
        std: Likewise.

    Attributes:
        views: Over how many symmetries of a picture a prediction is averaged.
    """

    views = 1

    def __init__(
        self,
        model: Any,
        config: TrainConfig | None = None,
        *,
        teacher: DistillationTeacher | None = None,
        class_weights: Tensor | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ) -> None:
        super().__init__(model, config)
        self.frozen: list[nn.Module] = []
        if config is None:
            return
        self.frozen = freeze_stages(model, config.freeze_stages)
        if config.compile:
            model.compile()
        self._teacher = [teacher] if teacher is not None else []  # in a list, so that it stays out of the checkpoints
        self.class_weights: Tensor | None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        classes = model.num_classes
        mixes = config.mixup > 0 or config.cutmix > 0
        self.mixup = (
            Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )
            if mixes
            else None
        )
        train: dict[str, Any] = {"loss": MeanMetric(nan_strategy="ignore"), **self.measures()}
        self.train_metrics = MetricCollection(train, prefix="train_", compute_groups=False)
        val: dict[str, Any] = {"loss": MeanMetric(), **self.measures()}
        if "top1" in val and classes > 5:
            val["top5"] = _accuracy(classes, top_k=5)
        self.val_metrics = MetricCollection(val, prefix="val_", compute_groups=False)

    def measures(self) -> dict[str, Any]:
        """What is measured in training and validation beside the loss."""
        return {"top1": _accuracy(self.model.num_classes)}

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

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
        super().on_save_checkpoint(checkpoint)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lay the pictures out channels-last where the run wants it."""
        if self.config is not None and self.config.channels_last and isinstance(batch[0], Tensor):
            return [batch[0].contiguous(memory_format=torch.channels_last), *batch[1:]]
        return batch

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(N, classes)`."""
        return self.model(x)

    def on_fit_start(self) -> None:
        """Put the teacher beside the network."""
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Sum up anew, for the checkpoint of an epoch's end holds its sums."""
        self.train_metrics.reset()
        for module in self.frozen:  # Lightning takes the modes as it finds them
            module.eval()

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        assert self.config is not None
        c = self.config
        pictures, labels, _ = batch
        targets = labels
        if self.mixup is not None:
            # The same in all parts of a step, see `TrainBatches`.
            seed_all(c.seed, self.trainer.global_step, MIXING)
            pictures, targets = self.mixup(pictures, labels)
        self.seed_step(COMPUTING, batch_idx)
        logits = self(pictures)
        loss = self.loss(logits.float(), targets)
        for teacher in self._teacher:
            with torch.no_grad():
                answer = teacher(teacher.normalize_input(pictures, self.mean, self.std)).float()
            distilled = distillation_loss(logits.float(), answer, c.distillation, c.distill_tau)
            loss = (1 - c.distill_alpha) * loss + c.distill_alpha * distilled
        self.train_metrics["loss"].update(loss.detach(), len(labels))
        self.train_metrics["top1"].update(logits.detach().float(), labels)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with labels `(N,)` or, after Mixup, with probabilities `(N, classes)`."""
        assert self.config is not None
        smoothing = 0.0 if targets.is_floating_point() else self.config.label_smoothing
        return F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing)

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """Loss and accuracy of a batch."""
        pictures, labels, indices = batch
        counted = [i for i, index in enumerate(indices) if index != NOT_COUNTED]
        # Where the weights are divided, all processes compute as often as each other, counted or not.
        logits = self.trained(pictures)[counted].float()
        if not counted:
            return
        truth = torch.tensor([int(labels[i]) for i in counted], device=pictures.device)
        self.val_metrics["loss"].update(F.cross_entropy(logits, truth), len(counted))
        for name, metric in self.val_metrics.items(keep_base=True):
            if name != "loss":
                metric.update(logits, truth)

    def on_validation_epoch_end(self) -> None:
        """Sum the validation up."""
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def predict_step(self, batch: list[Any], batch_idx: int) -> tuple[Tensor, list[Any], list[int]]:
        """Probabilities `(N, classes)`, the mean over `views`, what came with the pictures, and their indices."""
        pictures, others, indices = batch
        probs = [self(view).float().softmax(dim=1) for view in views_of(pictures, self.views)]
        return torch.stack(probs).mean(0) if len(probs) > 1 else probs[0], others, indices

    @property
    def learned(self) -> nn.Module:
        """What the optimiser changes."""
        return self.model

    def configure_optimizers(self) -> Any:
        """The optimiser, with weight decay on matrices only, and its schedule in steps."""
        assert self.config is not None
        c = self.config
        # One kernel for all weights where torch has it; with float16's scaling it would not go with clipping.
        fused: dict[str, Any] = (
            {"fused": True} if c.opt.lower() in ("adam", "adamw") and c.precision != "16-mixed" else {}
        )
        optimizer = create_optimizer_v2(
            self.learned, opt=c.opt, lr=c.lr, weight_decay=c.weight_decay, layer_decay=c.layer_decay, **fused
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(steps * c.warmup_epochs / c.epochs)

        def factor(scale: float, step: int) -> float:
            return scale * warmup_cosine(step, steps, warmup, c.lr, c.min_lr) / c.lr

        scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        schedule = LambdaLR(optimizer, [partial(factor, scale) for scale in scales])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def freeze_stages(model: Any, stages: int) -> list[nn.Module]:
    """Stop the training of the stem and so many stages.

    Returns:
        The modules that hold nothing else, to be kept in evaluation mode.

    Raises:
        InputError: If the network has fewer stages.
    """
    if not stages:
        return []
    known = stages_of(model)
    if stages > len(known):
        raise InputError(f"--freeze_stages {stages}: the network has {len(known)} stages")
    last = known[stages - 1]["module"]
    names = [name for name, _ in model.named_parameters()]
    end = 1 + max(i for i, name in enumerate(names) if name.startswith(f"{last}."))
    kept = set(names[:end])
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.requires_grad_(False)
    return [
        module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters()) and all(not p.requires_grad for p in module.parameters())
    ]


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The model of a run, with random weights.

    Raises:
        ValueError: If the model does not take the options.
    """
    args = dict(config.model_args)
    args |= {"num_classes": num_classes, "in_chans": config.in_chans, "drop_rate": config.drop_rate}
    if config.drop_path_rate is not None:
        args["drop_path_rate"] = config.drop_path_rate
    model: Any = timm.create_model(config.model, **args)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.to(memory_format=torch.channels_last) if config.channels_last else model
