"""A classifier in training: its network, its losses, its optimiser and schedule."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.models import PretrainedCfg, get_model_input_config
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..data import Unreadable
from ..data.loading import PADDING, seed_all
from ..errors import InputError
from ..models import classifier_names, load_weights, of_channels, read_checkpoint, save_checkpoint, stages_of
from .config import TrainConfig
from .data import ClassificationData
from .distillation import Teacher, distillation_loss, feature_loss, last_maps
from .figures import Panel
from .module import COMPUTING, MIXING, RunModule, create_optimizer


class Classifier(RunModule):
    """A timm model with cross-entropy, an optimiser of timm's, linear warm-up and a cosine schedule.

    Args:
        config: Options of the run.
        data: Data of the run.
        checkpoint: The checkpoint that is restored afterwards; without one the weights to start from are loaded.

    Raises:
        InputError: If the model does not take the options or the weights.
    """

    curves: Sequence[Panel] = (
        Panel("Loss", "cross-entropy", {"train_loss": "training", "val_loss": "validation"}),
        Panel("Top-1 accuracy", "%", {"train_top1": "training (augmented)", "val_top1": "validation"}, scale=100),
    )

    def __init__(self, config: TrainConfig, data: ClassificationData, checkpoint: Path | None = None) -> None:
        model: Any = build_model(config, len(data.splits.class_names))
        if config.start and checkpoint is None:
            load_weights(model, config.start)
        if config.freeze_stages:
            _freeze_stages(model, config.freeze_stages)
        super().__init__(config, model)
        self.head_alone: bool | None = None
        if config.torchcompile:
            model.compile()
        self.title = f"{config.model} on {config.data}, {config.img_size} px"
        if config.progressive_epochs:
            self.title += f" (training: {config.progressive_size} px until epoch {config.progressive_epochs})"
        self.class_names, self.data_config, self.steps = data.splits.class_names, data.data_config, data.steps
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        classes, self.labelled = len(self.class_names), data.splits.labelled
        self.teacher: Teacher | None = None  # no module, so that it is not in the checkpoints
        self.projection: nn.Module | None = None
        if config.teacher:
            names = self.class_names if config.distill_alpha else None
            self.teacher = Teacher(config.teacher, names, self.data_config)
        self.features_alone = not self.labelled and not config.distill_alpha
        if self.features_alone:  # the classifier learns nothing
            self.watched = "val_loss", "min"
            self.curves = (Panel("Loss of the features", "1 - cosine similarity", self.curves[0].lines),)
        if self.teacher is not None and config.distill_features:
            self.projection = nn.Conv2d(_map_channels(model, config.model), self.teacher.channels, 1)
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
        if self.features_alone:
            del train["top1"], val["top1"]
        elif classes > 5:
            val["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        self.train_metrics = MetricCollection(train, prefix="train_", compute_groups=False)
        self.val_metrics = MetricCollection(val, prefix="val_", compute_groups=False)

    watched = ("val_top1", "max")

    def monitor(self, row: dict[str, Any]) -> Any:
        """Validation accuracy, and the loss where it is equal, or the loss alone."""
        return (row.get("val_top1", 0.0), -row["val_loss"]) if "val_loss" in row else None

    def summary(self, row: dict[str, Any]) -> str:
        """The validation results of an epoch in words."""
        if "val_loss" not in row:
            return ""
        accuracies = [f"  val top-{k} {100 * row[f'val_top{k}']:.1f} %" for k in (1, 5) if f"val_top{k}" in row]
        return f"val loss {row['val_loss']:.3f}{''.join(accuracies)}"

    def save(self, model: Any, directory: Path) -> None:
        """Write a checkpoint directory that timm loads."""
        save_checkpoint(model, directory, data_config=self.data_config, label_names=self.class_names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what `patnet.load` builds the network from."""
        c, classes = self.config, self.model.num_classes
        args = {**c.model_kwargs, "in_chans": c.in_chans, "num_classes": classes}
        described = {"architecture": c.model, "num_classes": classes, "model_args": args}
        described |= {"pretrained_cfg": {**self.model.pretrained_cfg, **self.data_config}}
        checkpoint["hyper_parameters"] = {**described, "label_names": self.class_names}
        state = checkpoint["state_dict"]  # of the network alone, which `patnet.load` reads
        checkpoint["projection"] = {key: state.pop(key) for key in list(state) if key.startswith("projection.")}
        super().on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the projection of a distillation too."""
        if checkpoint["projection"]:  # sharded weights have none, and are loaded elsewhere
            checkpoint["state_dict"] |= checkpoint["projection"]
        super().on_load_checkpoint(checkpoint)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the norms in evaluation mode that are not trained: frozen ones, and all in the epochs of the head."""
        super().on_train_batch_start(batch, batch_idx)
        head_alone = self.current_epoch < self.config.head_epochs
        if head_alone != self.head_alone:
            self.head_alone = head_alone
            _set_modes(self.model, self._head() if head_alone else None)

    def _head(self) -> set[nn.Parameter]:
        return {p for name in classifier_names(self.model) for p in self.model.get_submodule(name).parameters()}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Leave out what is not trained yet, and steps that are not finite."""
        if self.head_alone:  # a gradient of None, as frozen parameters would stop a run on several devices
            head = self._head()
            for parameter in self.model.parameters():
                if parameter not in head:
                    parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        c, (images, labels, _) = self.config, batch
        images, targets = images.contiguous(memory_format=self.memory_format), labels
        if self.mixup is not None:
            # The same in all parts of a global batch, see `TrainBatches`.
            seed_all(c.seed, self.trainer.global_step, MIXING)
            images, targets = self.mixup(images, labels)
        self.seed_step(COMPUTING, batch_idx)
        maps: Tensor | None = None
        if self.projection is None:
            logits = self.model(images)
        else:
            logits, maps = last_maps(self.model, images)
        logits, loss = logits.float(), logits.new_zeros(())
        if self.labelled:
            smoothing = 0.0 if self.mixup is not None else c.smoothing
            options: dict[str, Any] = {"weight": self.class_weights, "label_smoothing": smoothing, "reduction": "none"}
            # Not PyTorch's mean, which divides by the weights of the part, so that rare classes would count less in
            # small parts.
            loss = F.cross_entropy(logits, targets, **options).mean()
        if self.teacher is not None:
            answer, its_maps = self.teacher(images, maps is not None)
            if c.distill_alpha:
                distilled = distillation_loss(logits, answer.float(), c.distillation, c.distill_tau)
                loss = (1 - c.distill_alpha) * loss + c.distill_alpha * distilled
            if self.projection is not None and maps is not None and its_maps is not None:
                loss = loss + c.distill_features * feature_loss(maps, its_maps, self.projection)
            if not self.labelled:
                labels = answer.argmax(dim=1)
        self.train_metrics["loss"].update(loss.detach(), len(labels))
        if self.features_alone:
            loss = loss + 0 * logits.sum()  # because on several devices all parameters need a gradient
        else:
            self.train_metrics["top1"].update(logits.detach(), labels)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The loss and the accuracy of a batch."""
        images, labels, indices = batch
        images = images.contiguous(memory_format=self.memory_format)
        counted = [i for i, index in enumerate(indices) if index != PADDING and not isinstance(labels[i], Unreadable)]
        # With sharded weights all processes must compute equally often, with padding too.
        logits, maps = last_maps(self.eval_model, images) if self.features_alone else (self.eval_model(images), None)
        logits = logits[counted].float()
        if not counted:
            return
        if self.teacher is not None and self.projection is not None and maps is not None:
            its_maps: Any = self.teacher(images[counted], True)[1]
            self.val_metrics["loss"].update(feature_loss(maps[counted], its_maps, self.projection), len(counted))
            return
        targets = torch.tensor([int(labels[i]) for i in counted], device=images.device)
        if self.teacher is not None and not self.labelled:
            targets = self.teacher(images, False)[0][counted].argmax(dim=1)
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
        return make_optimizer(self.config, self.model, self.steps, self.projection)


def make_optimizer(
    config: TrainConfig, module: nn.Module, steps: int, projection: nn.Module | None = None
) -> dict[str, Any]:
    """The optimiser, with weight decay of matrices only, and a linear warm-up followed by a cosine schedule.

    Args:
        config: Options of the run.
        module: What the optimiser changes.
        steps: Optimiser steps of the run.
        projection: What it changes too, without weight decay.

    Raises:
        InputError: If the optimiser cannot be used, for example because it needs a GPU.
    """
    # One kernel for all weights where torch has it; not with float16, whose scaler would not go with clipping.
    fused: dict[str, Any] = {}
    if config.opt.lower() in ("adam", "adamw") and config.precision != "16-mixed":
        fused["fused"] = True
    optimizer = create_optimizer(config, module, layer_decay=config.layer_decay, **fused)
    if projection is not None:
        optimizer.add_param_group({"params": list(projection.parameters()), "weight_decay": 0.0})
    warmup = round(steps * config.warmup / config.epochs)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps - warmup),
        lr_min=min(config.min_lr, config.lr),
        warmup_t=warmup,
        warmup_lr_init=min(1e-6, config.lr),
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
    except (AssertionError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--model {config.model}: does not take these options ({error})") from error
    takes = get_model_input_config(model)
    if takes["fixed_input_size"]:
        size = takes["input_size"][-1]
        if size != config.img_size:
            raise InputError(
                f"--model {config.model}: takes images of {size} px alone; give --img-size {size}, or "
                f"--model-kwargs.img_size {config.img_size}"
            )
        if config.progressive_epochs:
            raise InputError(f"--progressive-size: {config.model} takes images of {size} px alone; leave it out")
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def _freeze_stages(model: Any, stages: int) -> None:
    """Freeze what comes before the end of a stage, in the order of the modules.

    timm.utils.freeze takes names of modules, and its frozen BatchNorms lack the counters that checkpoints have.
    """
    known = [stage for stage in stages_of(model) if not stage["module"].startswith(("act", "conv", "stem"))]
    if stages > len(known):
        raise InputError(f"--freeze-stages {stages}: the network has {len(known)} stages")
    last = known[stages - 1]["module"]
    names = [name for name, _ in model.named_modules()]
    end = max((i for i, name in enumerate(names) if f"{name}.".startswith(f"{last}.")), default=-1)
    if end < 0:
        raise InputError(f"--freeze-stages {stages}: timm does not say which modules are the stages of this network")
    for name in names[: end + 1]:
        for parameter in model.get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(False)
    _set_modes(model)


def _set_modes(model: nn.Module, head: set[nn.Parameter] | None = None) -> None:
    """Training mode for all modules but those whose parameters are all frozen, or with `head` are not of the head."""
    for module in model.modules():
        own = list(module.parameters())
        module.training = not own or any(p.requires_grad and (head is None or p in head) for p in own)


def _map_channels(model: Any, name: str) -> int:
    """Channels of the last stage's maps."""
    if not stages_of(model) or not hasattr(model, "forward_intermediates"):
        raise InputError(f"--distill-features: {name} gives no feature maps in timm; leave it out")
    return stages_of(model)[-1]["num_chs"]


def follow_weights(config: TrainConfig) -> TrainConfig:
    """The options with the mean and the std of the weights that a run starts from.

    Raises:
        InputError: If the weights cannot be read, or are those of another architecture.
    """
    if not config.start:
        return config
    described = read_checkpoint(config.start)[1]
    architecture = described.get("architecture", config.model).partition(".")[0]
    if architecture != config.model.partition(".")[0]:
        raise InputError(f"--weights {config.start}: holds a {architecture}; give --model {architecture}")
    cfg = described.get("pretrained_cfg", {})
    if not described and not architecture.startswith("patnet_"):  # a file of timm's
        cfg = (timm.get_pretrained_cfg(config.model) or PretrainedCfg()).to_dict()
    values: dict[str, Any] = {}
    for name in ("mean", "std"):
        found = cfg.get(name)
        if getattr(config, name) is None and isinstance(found, list | tuple):
            values[name] = of_channels(found, config.in_chans)
    return replace(config, **values)
