"""Pretrain a network to locate painted defects, with a data set and a LightningModule of one's own."""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from painting import DEFECTS, Paint, RepeatedCells
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MultilabelAccuracy

from patnet import InputError, load_weights, save_checkpoint
from patnet.cli import main
from patnet.data import DataSplits, default_cache_dir, eval_transform
from patnet.data.batches import TrainBatches
from patnet.data.elpv import MEAN, STD, cell_images, solar_cells
from patnet.data.images import split_off
from patnet.data.loading import PADDING, SeededDataset, TrainLoader, eval_loader
from patnet.models import stages_of
from patnet.train import ClassificationData, Interrupted, RunModule, TrainConfig, fit
from patnet.train.classifier import build_model, make_optimizer
from patnet.train.figures import Panel
from patnet.train.module import COMPUTING

NAME = "examples/elpv/pretrain.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  python examples/elpv/pretrain.py --recipe painted --out runs/painted
  python examples/elpv/pretrain.py --resume --out runs/painted
  patnet train --recipe examples/elpv/tuned.yaml --weights runs/painted --out runs/tuned

The network learns which defects an image shows, and stage by stage where they are. The options are those of
patnet train."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))
CONFIG, RECIPES = TrainConfig, {"painted": Path(__file__).with_name("painted.yaml")}

# Solar cells with painted defects in an epoch, and in the validation.
TRAIN, VAL = 10_000, 512

RARE = -2.5  # initial logit of a defect at a position

# Options of `patnet train` that have no meaning here, and their values.
UNUSED = {"mixup": 0.0, "cutmix": 0.0, "teacher": None, "balance": "none", "torchcompile": False, "layer_decay": None}


class PaintedData(ClassificationData):
    """ELPV's training cells that are certainly functional, with painted defects; the test cells take no part.

    A training batch is `(images, masks, faults)` with masks `(N, defects, H, W)`. An epoch has `train` images, the
    validation `val`, which are the same in each epoch.
    """

    def __init__(self, config: TrainConfig, train: int = TRAIN, val: int = VAL) -> None:
        super().__init__(config)
        self.counts = train, val

    @cached_property
    def splits(self) -> DataSplits:
        """The solar cells to paint on; a stratified share of them is for validation."""
        c = self.config
        cells = solar_cells()
        functional = [i for i, cell in enumerate(cells) if not cell.test and cell.probability == 0]
        cache = Path(c.cache_dir) if c.cache_dir else default_cache_dir()
        images = cell_images([0] * len(cells), "L" if c.in_chans == 1 else "RGB", c.cache_size, cache)
        modules = [cells[i].module for i in functional]
        train, val = split_off(images.subset(functional), modules, c.val_fraction, c.seed)
        val = RepeatedCells(val, self.counts[1]) if val else None
        return DataSplits(list(DEFECTS), RepeatedCells(train, self.counts[0]), val, mean=MEAN, std=STD)

    def on_before_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """The labels are masks, which need no check."""
        return batch

    def train_loader(self) -> TrainLoader:
        """The training batches of this process."""
        c, dataset = self.config, self.splits.train
        paint = Paint(self.train_transform(c.img_size), MEAN, STD)
        seeded = SeededDataset(dataset, c.seed, [(0, paint)], strict=c.strict, joint=True)
        batches = TrainBatches(len(dataset), self.batches, c.seed, rank=self.rank)
        return TrainLoader(seeded, batches, num_workers=c.workers, persistent_workers=c.workers > 0)

    def val_dataloader(self) -> Any:
        """The validation batches of this process; none without validation."""
        if self.splits.val is None:
            return []
        paint = Paint(eval_transform(self.data_config), MEAN, STD, seed=self.config.seed)
        options = {"num_workers": self.config.workers, "persistent_workers": self.config.workers > 0}
        place = {"world": self.batches.devices, "rank": self.rank}
        return eval_loader(self.splits.val, self.batches.batch_size, transform=paint, joint=True, **place, **options)


class Localizer(RunModule):
    """A timm model that learns which defects an image shows, and at each stage where they are.

    The loss is the binary cross-entropy of the defects of the image, plus that of the defects at each position of the
    feature maps of all stages but the first. The maps have heads of their own, 1x1 convolutions used in training only.
    """

    curves = (
        Panel("Loss", "binary cross-entropy", {"train_loss": "training, with maps", "val_loss": "validation"}),
        Panel("Accuracy of the defects", "%", {"train_accuracy": "training", "val_accuracy": "validation"}, scale=100),
    )

    def __init__(self, config: TrainConfig, model: Any, data: PaintedData) -> None:
        for name, value in UNUSED.items():
            if getattr(config, name) != value:
                raise InputError(f"{name} {getattr(config, name)}: has no meaning for painted defects; leave it out")
        if config.strategy == "fsdp":
            raise InputError("strategy fsdp: does not shard the heads of the maps; leave it out, or take ddp")
        super().__init__(config, model)
        self.title = f"{config.model} on painted defects, {config.img_size} px"
        self.data_config, self.steps = data.data_config, data.steps
        heads = [nn.Conv2d(stage["num_chs"], len(DEFECTS), 1) for stage in stages_of(model)[1:]]
        for head in heads:
            nn.init.constant_(cast(Tensor, head.bias), RARE)
        self.heads = nn.ModuleList(heads)
        accuracy = MultilabelAccuracy(len(DEFECTS), average="micro")
        metrics = MetricCollection({"loss": MeanMetric(nan_strategy="ignore"), "accuracy": accuracy})
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")

    def monitor(self, row: dict[str, Any]) -> Any:
        """The negative validation loss."""
        return -row["val_loss"] if "val_loss" in row else None

    def summary(self, row: dict[str, Any]) -> str:
        """The validation results of an epoch in words."""
        if "val_loss" not in row:
            return ""
        return f"val loss {row['val_loss']:.3f}  val accuracy {100 * row['val_accuracy']:.1f} %"

    def save(self, model: Any, directory: Path) -> None:
        """Write a checkpoint directory that timm loads, without the heads of the maps."""
        save_checkpoint(model, directory, data_config=self.data_config, label_names=DEFECTS)

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """The loss of a batch of images `(N, in_chans, H, W)` and masks `(N, defects, H, W)`."""
        self.seed_step(COMPUTING, batch_idx)
        images, masks, _ = batch
        masks = masks.float()
        present = masks.amax((2, 3))
        last, maps = self.model.forward_intermediates(images)
        logits = self.model.forward_head(last).float()
        loss = F.binary_cross_entropy_with_logits(logits, present)
        for head, features in zip(self.heads, maps[-len(self.heads) :], strict=True):
            predicted = head(features).float()
            targets = F.adaptive_max_pool2d(masks, predicted.shape[-2:])
            loss = loss + F.binary_cross_entropy_with_logits(predicted, targets)
        self.train_metrics["loss"].update(loss.detach(), len(masks))
        self.train_metrics["accuracy"].update(logits.detach().sigmoid(), present.int())
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(masks))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """The loss and the accuracy of the defects of the images."""
        images, masks, indices = batch
        counted = [i for i, index in enumerate(indices) if index != PADDING]
        if not counted:
            return
        present = torch.stack([masks[i] for i in counted]).to(images.device).amax((2, 3)).float()
        logits = self.eval_model(images)[counted].float()
        self.val_metrics["loss"].update(F.binary_cross_entropy_with_logits(logits, present), len(counted))
        self.val_metrics["accuracy"].update(logits.sigmoid(), present.int())

    def on_validation_epoch_end(self) -> None:
        """Log the validation results."""
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def configure_optimizers(self) -> Any:
        """The optimiser and schedule of `patnet train`, of the network and the heads of the maps."""
        return make_optimizer(self.config, nn.ModuleList([self.model, self.heads]), self.steps)


def make_localizer(data: PaintedData, checkpoint: Path | None) -> Localizer:
    """The module of a run, from its data and the checkpoint that is restored afterwards if any."""
    model = build_model(data.config, len(DEFECTS))
    if data.config.weights and checkpoint is None:
        load_weights(model, data.config.weights)
    return Localizer(data.config, model, data)


def run(config: TrainConfig, *, resume: bool = False) -> int:
    """Pretrain.

    Args:
        resume: Resume the run in --out; needs no other option.
    """
    console = Console()
    try:
        result = fit(config, PaintedData(config), make_localizer, resume=resume, console=console)
    except Interrupted as stopped:
        console.print(f"Interrupted. Resume with: python {NAME} --resume --out {config.out}", highlight=False)
        return stopped.exit_code
    console.print(f"Best epoch {result.best['epoch']} of {result.epochs}: {result.summary}.", highlight=False)
    console.print(f"Next    patnet train --weights {config.out} ...", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
