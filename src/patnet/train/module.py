"""What the steps of all runs share: a moving average of the weights, and steps that are skipped where not finite."""

from typing import Any

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from ..errors import InputError
from .config import RunConfig

__all__ = ["RunModule"]


class RunModule(L.LightningModule):
    """A network in training.

    A step whose gradient is not finite never reaches the weights: it is skipped and counted.

    Args:
        model: The network.
        config: Options of the run; None for prediction alone.

    Attributes:
        ema: The moving average, or None.
        skipped: Steps without a finite gradient, `"all"` and `"in a row"`.
    """

    def __init__(self, model: Any, config: RunConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.config: Any = config
        self.ema: Any = None
        # Statistics of the norms before a step, to go back to if it is not finite.
        self.before: list[Tensor] = []
        self.skipped = {"all": 0, "in a row": 0}
        if config is not None and config.ema_decay:
            self.ema = ModelEmaV3(model, config.ema_decay, use_warmup=True).requires_grad_(False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was skipped, and the average under the name that timm's readers know."""
        checkpoint["skipped"] = self.skipped
        if self.ema is not None:
            checkpoint["state_dict_ema"] = self.ema.module.state_dict()

    @property
    def trained(self) -> Any:
        """The network to evaluate and keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what was skipped so far."""
        self.skipped = dict(checkpoint["skipped"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember the norms' statistics at the start of a step."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            statistics = [b for b in self.model.buffers() if b.is_floating_point()]
            if len(self.before) != len(statistics):
                self.before = [b.clone() for b in statistics]
            elif statistics:
                torch._foreach_copy_(self.before, statistics)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Skip a step whose gradient is not finite: weights, norms and moments stay as they were.

        Raises:
            InputError: After too many in a row.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not gradients or torch.nn.utils.get_total_norm(gradients).isfinite():
            self.skipped["in a row"] = 0
            return
        for parameter in self.parameters():
            parameter.grad = None
        statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        if statistics:
            torch._foreach_copy_(statistics, self.before)
        self.skipped = {name: count + 1 for name, count in self.skipped.items()}
        if self.skipped["in a row"] >= self.config.max_skipped:
            remedy = "--precision bf16-mixed, " if self.config.precision == "16-mixed" else ""
            raise InputError(
                f"the loss or its gradient was not finite in {self.skipped['in a row']} steps in a row; the weights "
                f"are those of the last good step; likely the learning rate {self.config.lr} is too high: try {remedy}"
                "a lower --lr, a longer warm-up or --clip_grad 1"
            )

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step, and follow the weights with their moving average if it was taken."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None and not self.skipped["in a row"]:
            self.ema.update(self.model, step=self.trainer.global_step)
