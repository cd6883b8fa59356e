"""A classifier in training: its network, its losses, its optimiser and schedule."""

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.task import DistillationTeacher
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..data.loading import PADDING, seed_all
from ..errors import InputError, nearest
from ..models import load_checkpoint, load_weights, save_checkpoint, stages_of
from .config import TrainConfig
from .data import ClassificationData
from .figures import Panel
from .module import COMPUTING, MIXING, RunModule


class Classifier(RunModule):
    """A timm model with cross-entropy, an optimiser of timm's, linear warm-up and a cosine schedule.

    Args:
        config: Options of the run.
        data: Data of the run.
        checkpoint: The checkpoint that is restored afterwards; without one `config.weights` are loaded.

    Raises:
        InputError: If the model does not take the options or the weights.
    """

    curves = (
        Panel("Loss", "cross-entropy", {"train_loss": "training", "val_loss": "validation"}),
        Panel("Top-1 accuracy", "%", {"train_top1": "training (augmented)", "val_top1": "validation"}, scale=100),
    )

    def __init__(self, config: TrainConfig, data: ClassificationData, checkpoint: Path | None = None) -> None:
        model: Any = build_model(config, len(data.splits.class_names))
        if config.weights and checkpoint is None:
            load_weights(model, config.weights)
        if config.freeze_stages:
            _freeze_stages(model, config.freeze_stages)
        super().__init__(config, model)
        if config.torchcompile:
            model.compile()
        self.title = f"{config.model} on {config.data}, {config.img_size} px"
        self.class_names, self.data_config, self.steps = data.splits.class_names, data.data_config, data.steps
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        classes = len(self.class_names)
        self.teacher = []  # a list, so that it is not in the checkpoints
        if config.teacher:
            self.teacher.append(_load_teacher(config.teacher, classes, config.in_chans))
        self.class_weights: Tensor | None
        self.register_buffer(
            "class_weights", data.class_weights() if config.balance == "weights" else None, persistent=False
        )
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.smoothing,
                num_classes=classes,
            )
        top1 = MulticlassAccuracy(classes, average="micro")
        train: dict[str, Any] = {"loss": MeanMetric(nan_strategy="ignore"), "top1": top1}
        val: dict[str, Any] = {"loss": MeanMetric(), "top1": top1.clone()}
        if classes > 5:
            val["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        self.train_metrics = MetricCollection(train, prefix="train_", compute_groups=False)
        self.val_metrics = MetricCollection(val, prefix="val_", compute_groups=False)

    def monitor(self, row: dict[str, Any]) -> Any:
        """Validation accuracy, and the loss where it is equal."""
        return (row["val_top1"], -row["val_loss"]) if "val_loss" in row else None

    def summary(self, row: dict[str, Any]) -> str:
        """The validation results of an epoch in words."""
        if "val_loss" not in row:
            return ""
        top5 = f"  val top-5 {100 * row['val_top5']:.1f} %" if "val_top5" in row else ""
        return f"val loss {row['val_loss']:.3f}  val top-1 {100 * row['val_top1']:.1f} %{top5}"

    def save(self, model: Any, directory: Path) -> None:
        """Write a checkpoint directory that timm loads."""
        save_checkpoint(model, directory, data_config=self.data_config, label_names=self.class_names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what `patnet.load` builds the network from."""
        c, classes = self.config, self.model.num_classes
        args = {**c.model_kwargs, "in_chans": c.in_chans, "num_classes": classes}
        checkpoint["hyper_parameters"] = {"architecture": c.model, "num_classes": classes, "model_args": args}
        super().on_save_checkpoint(checkpoint)

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        c, (images, labels, _) = self.config, batch
        images, targets = images.contiguous(memory_format=self.memory_format), labels
        if self.mixup is not None:
            # The same in all parts of a global batch, see `TrainBatches`.
            seed_all(c.seed, self.trainer.global_step, MIXING)
            images, targets = self.mixup(images, labels)
        self.seed_step(COMPUTING, batch_idx)
        logits = self.model(images).float()
        smoothing = 0.0 if self.mixup is not None else c.smoothing
        loss = F.cross_entropy(logits, targets, weight=self.class_weights, label_smoothing=smoothing)
        for teacher in self.teacher:
            teacher.to(images.device)
            mean, std = (images.new_tensor(self.data_config[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
            with torch.no_grad():
                answer = teacher(teacher.normalize_input(images, mean, std)).float()
            distilled = _distillation_loss(logits, answer, c.distillation, c.distill_tau)
            loss = (1 - c.distill_alpha) * loss + c.distill_alpha * distilled
        self.train_metrics["loss"].update(loss.detach(), len(labels))
        self.train_metrics["top1"].update(logits.detach(), labels)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The loss and the accuracy of a batch."""
        images, labels, indices = batch
        images = images.contiguous(memory_format=self.memory_format)
        counted = [i for i, index in enumerate(indices) if index != PADDING]
        # With sharded weights all processes must compute equally often, with padding too.
        logits = self.eval_model(images)[counted].float()
        if not counted:
            return
        targets = torch.tensor([int(labels[i]) for i in counted], device=images.device)
        for name, metric in self.val_metrics.items(keep_base=True):
            if name == "loss":
                metric.update(F.cross_entropy(logits, targets), len(counted))
            else:
                metric.update(logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Log the validation results."""
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule."""
        return make_optimizer(self.config, self.model, self.steps)


def make_optimizer(config: TrainConfig, module: nn.Module, steps: int) -> dict[str, Any]:
    """The optimiser, with weight decay of matrices only, and a linear warm-up followed by a cosine schedule.

    Args:
        config: Options of the run.
        module: What the optimiser changes.
        steps: Optimiser steps of the run.
    """
    # One kernel for all weights where torch has it; not with float16, whose scaler would not go with clipping.
    fused: dict[str, Any] = {}
    if config.opt.lower() in ("adam", "adamw") and config.precision != "16-mixed":
        fused["fused"] = True
    optimizer = create_optimizer_v2(
        module, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay, **fused
    )
    warmup = round(steps * config.warmup / config.epochs)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup),
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The model of a run, with random weights.

    Raises:
        InputError: If the model does not take the options.
    """
    args = {**config.model_kwargs, "num_classes": num_classes, "in_chans": config.in_chans, "drop_rate": config.drop}
    if config.drop_path is not None:
        args["drop_path_rate"] = config.drop_path
    try:
        model: Any = timm.create_model(config.model, **args)
        if config.grad_checkpointing:
            model.set_grad_checkpointing()
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {config.model}: does not take these options ({error})") from error
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _freeze_stages(model: Any, stages: int) -> None:
    """Freeze the stem and stages, and keep modules without other parameters in evaluation mode.

    timm.utils.freeze takes names of modules, and its frozen BatchNorms lack the counters that checkpoints have.
    """
    known = stages_of(model)
    if stages > len(known):
        raise InputError(f"--freeze-stages {stages}: the network has {len(known)} stages")
    prefix = f"{known[stages - 1]['module']}."
    parameters = list(model.named_parameters())
    end = 1 + max(i for i, (name, _) in enumerate(parameters) if name.startswith(prefix))
    for _, parameter in parameters[:end]:
        parameter.requires_grad_(False)
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def _load_teacher(name: str, num_classes: int, in_chans: int) -> DistillationTeacher:
    """The teacher, a checkpoint or a pretrained model of timm's, with the classes and channels of the student."""
    model: Any
    if Path(name).exists():
        model = load_checkpoint(name).model
    elif timm.is_model(name.split(".")[0]):
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # the Hub's client and the network raise many types
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--teacher {name}: timm has no weights of it here ({reason})") from error
    else:
        hint = nearest(name, timm.list_models())
        raise InputError(f"--teacher {name}: neither a checkpoint nor a model of timm's{hint}")
    if model.num_classes != num_classes:
        raise InputError(f"--teacher {name}: has {model.num_classes} classes, but the data set has {num_classes}")
    stem = model.get_submodule(model.pretrained_cfg["first_conv"])
    channels = getattr(stem, "in_channels", model.pretrained_cfg["input_size"][0])
    if channels != in_chans:
        raise InputError(f"--teacher {name}: takes {channels} channels, but --in-chans is {in_chans}")
    return DistillationTeacher(model).requires_grad_(False).eval()


def _distillation_loss(logits: Tensor, teacher: Tensor, kind: str, tau: float) -> Tensor:
    """The loss of DeiT (arXiv 2012.12877, equations 2 and 3) between the logits of student and teacher."""
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(dim=1))
    student, target = F.log_softmax(logits / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * tau**2
