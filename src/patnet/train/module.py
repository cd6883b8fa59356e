"""What the steps of all runs share: a moving average of the weights, and steps that are skipped where not finite."""

import copy
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchmetrics import MetricCollection

from ..data.loading import seed_all
from ..errors import InputError
from .batching import Batching
from .config import RunConfig
from .sharding import is_sharded, same_buffers, shard, whole_state

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
        train_metrics: What is summed up over an epoch.
    """

    train_metrics: MetricCollection

    def __init__(self, model: Any, config: RunConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.config: Any = config
        self.ema: Any = None
        # Statistics of the norms before a step, to go back to if it is not finite.
        self.before: list[Tensor] = []
        self.skipped = {"all": 0, "in a row": 0}
        # How steps are shared out, which may be another way when the run is resumed.
        self.batching: Batching | None = None
        # With FSDP a copy of the network that is not divided; in a list, so that it stays out of the checkpoints.
        self._undivided: list[Any] = []
        if config is not None and config.ema_decay:
            self.ema = ModelEmaV3(model, config.ema_decay, use_warmup=True).requires_grad_(False)

    def configure_model(self) -> None:
        """Divide network and average over the processes where the run asks for it."""
        if not is_sharded(self.trainer.strategy) or self._undivided:
            return
        self._undivided = [copy.deepcopy(self.model)]
        shard(self.model, self.trainer.strategy.root_device)
        if self.ema is not None:
            shard(self.ema.module, self.trainer.strategy.root_device)
            self.ema.foreach = False  # which takes no mixture of divided weights and whole statistics

    def seed_step(self, draw: int, batch_idx: int) -> None:
        """Seed a process's part of a step, as one process would have drawn for all.

        Args:
            draw: What is drawn for.
            batch_idx: Of the part, in the epoch.
        """
        trainer = self.trainer
        part = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
        seed_all(self.config.seed, trainer.global_step, draw, part)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what was skipped, how steps are shared out, and the average under the name that timm's readers know.

        And what all processes have summed up of the epoch, so that one that was interrupted is summed up whole.
        """
        checkpoint["skipped"] = self.skipped
        if self.batching is not None:
            checkpoint["batching"] = asdict(self.batching)
        if self.ema is not None:
            average = self.ema.module
            checkpoint["state_dict_ema"] = whole_state(average) if self._undivided else average.state_dict()
        checkpoint["sums"] = {}
        for name, metric in self.train_metrics.items(keep_base=True):
            with metric.sync_context():
                checkpoint["sums"][name] = copy.deepcopy(metric.metric_state)

    @property
    def trained(self) -> Any:
        """The network to evaluate and keep: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def to_keep(self) -> Any:
        """`trained` with all its weights, in the first process; all processes have to ask at once."""
        if not self._undivided:
            return self.trained
        state = whole_state(self.trained)
        if state:
            self._undivided[0].load_state_dict(state)
        return self._undivided[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what was skipped so far, and count batches as this run makes them."""
        self.skipped = dict(checkpoint["skipped"])
        summed = checkpoint.get("sums", {})
        weights = checkpoint.get("state_dict", {})
        for key in [key for key in weights if key.startswith("train_metrics.")]:  # runs begun with an earlier version
            _, name, part = key.split(".")
            summed.setdefault(name, {})[part] = weights.pop(key)
        if not self.trainer.global_rank:  # which goes on with the sums of all
            for name, parts in summed.items():
                for part, value in parts.items():
                    setattr(self.train_metrics[name], part, value.to(self.device))
        if self.batching is not None and "batching" in checkpoint:
            there = Batching(**checkpoint["batching"])
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                # The checkpoint is written before its own batch counts as completed.
                more = self.batching.batches(there, counts["ready"]) - counts["ready"]
                counts.update({name: count + more for name, count in counts.items()})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember the norms' statistics at the start of a step."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            if self._undivided:
                same_buffers(self.model)
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
        norm: Any = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if norm.isfinite():
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
