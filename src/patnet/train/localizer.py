"""Learning to find painted defects, for a network to start from where labelled cells are few."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MultilabelAccuracy

from ..data.loading import NOT_COUNTED
from ..errors import InputError
from ..models.stages import stages_of
from .classifier import COMPUTING, Classifier
from .config import TrainConfig

__all__ = ["Localizer"]

RARE = -2.5  # logit of a place with a defect, before anything is learned


class Localizer(Classifier):
    """A timm model that says which kinds of defects a picture shows, and stage by stage where they are.

    The loss is the binary cross-entropy of the kinds in the picture, and of the kinds at each place of the maps of all
    stages but the first. For the maps it has heads of its own, 1x1 convolutions that nothing but training needs.

    Args:
        model: Gives logits `(N, kinds)` for pictures `(N, in_chans, H, W)`.
        config: Options of the run.
        mean: Of the pictures' normalisation.
        std: Likewise.

    Raises:
        InputError: If an option has no meaning here.
    """

    def __init__(self, model: Any, config: TrainConfig, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        for name, usual in {
            "mixup": 0.0,
            "cutmix": 0.0,
            "teacher": None,
            "balance": "none",
            "compile": False,
            "layer_decay": None,
        }.items():
            if getattr(config, name) != usual:
                raise InputError(f"--{name} {getattr(config, name)}: not on {config.data}; leave it out")
        if config.strategy == "fsdp":
            raise InputError(f"--strategy fsdp: not on {config.data}; leave it out, or take ddp")
        super().__init__(model, config, mean=mean, std=std)
        heads = [nn.Conv2d(stage["num_chs"], model.num_classes, 1) for stage in stages_of(model)[1:]]
        for head in heads:
            nn.init.constant_(cast(Tensor, head.bias), RARE)
        self.heads = nn.ModuleList(heads)

    def measures(self) -> dict[str, Any]:
        """The share of right answers to whether a kind is in a picture."""
        return {"kinds": MultilabelAccuracy(self.model.num_classes, average="micro")}

    @property
    def learned(self) -> nn.Module:
        """What the optimiser changes: the heads too."""
        return nn.ModuleList([self.model, self.heads])

    def training_step(self, batch: list[Any], batch_idx: int) -> Tensor:
        """Loss of a batch of pictures `(N, in_chans, H, W)` and masks `(N, kinds, H, W)`."""
        self.seed_step(COMPUTING, batch_idx)
        pictures, masks, _ = batch
        masks = masks.float()
        present = masks.amax((2, 3))
        last, maps = self.model.forward_intermediates(pictures)
        logits = self.model.forward_head(last).float()
        loss = F.binary_cross_entropy_with_logits(logits, present)
        for head, features in zip(self.heads, maps[-len(self.heads) :], strict=True):
            found = head(features).float()
            there = F.adaptive_max_pool2d(masks, found.shape[-2:])
            loss = loss + F.binary_cross_entropy_with_logits(found, there)
        self.train_metrics["loss"].update(loss.detach(), len(masks))
        self.train_metrics["kinds"].update(logits.detach().sigmoid(), present.int())
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True, batch_size=len(masks))
        return loss

    def validation_step(self, batch: list[Any], batch_idx: int) -> None:
        """Loss and accuracy of the kinds in the pictures of a batch."""
        pictures, masks, indices = batch
        counted = [i for i, index in enumerate(indices) if index != NOT_COUNTED]
        if not counted:
            return
        present = torch.stack([torch.as_tensor(masks[i]) for i in counted]).to(pictures.device).amax((2, 3)).float()
        logits = self.trained(pictures)[counted].float()
        self.val_metrics["loss"].update(F.binary_cross_entropy_with_logits(logits, present), len(counted))
        self.val_metrics["kinds"].update(logits.sigmoid(), present.int())
