"""What the steps of all runs share: an EMA model, steps skipped where they are not finite, seeds, sharded weights."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.optim import create_optimizer_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MetricCollection

from ..data.loading import seed_all
from ..errors import InputError, one_line
from ..models import stages_of
from .config import RunConfig
from .figures import Panel

# Parts of the seed of a step, so that Mixup and the network draw different random numbers.
MIXING, COMPUTING = 1, 2


def create_optimizer(config: Any, module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """The optimiser of a run, with further arguments of `timm.optim.create_optimizer_v2`.

    Raises:
        InputError: If it cannot be used, for example because it needs a GPU.
    """
    kwargs = {"opt": config.opt, "lr": config.lr, "weight_decay": config.weight_decay, **options}
    try:
        return create_optimizer_v2(module, **kwargs)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"--opt {config.opt}: cannot be used here ({one_line(error)})") from error


class RunModule(L.LightningModule):
    """A network in training; a subclass gives its steps, its optimiser and the abstract methods below.

    A step whose gradient is not finite does not reach the weights: it is skipped and counted.

    Args:
        config: Options of the run.
        model: The network.

    Attributes:
        ema: The EMA model, or None.
        skipped: Number of skipped steps, `"total"` and `"consecutive"`.
        train_metrics: Metrics of an epoch, with the prefix `train_`; saved within an epoch, so that it can be resumed.
        title: Title of the curves.
        curves: Panels of the curves, in addition to the learning rate.
        watched: The validation metric that stops a run early, and whether it is to be `"min"` or `"max"`.
    """

    train_metrics: MetricCollection
    title: str = ""
    curves: Sequence[Panel] = ()
    watched: tuple[str, str] = ("val_loss", "min")

    def __init__(self, config: RunConfig, model: Any) -> None:
        super().__init__()
        self.config: Any = config
        self.model = model
        # Lightning's EMAWeightAveraging takes no sharded weights, has no warm-up, and averages skipped steps too.
        self.ema: Any = None
        if config.model_ema_decay:
            self.ema = ModelEmaV3(model, config.model_ema_decay, use_warmup=True).requires_grad_(False)
        self.skipped = {"total": 0, "consecutive": 0}
        # Statistics of the norms before a step, to restore if it is not finite.
        self._statistics: list[Tensor] = []
        # With FSDP a copy of the network that is not sharded; in a list, so that it is not in the checkpoints.
        self._unsharded: list[Any] = []

    @abstractmethod
    def monitor(self, row: dict[str, Any]) -> Any:
        """What is greater for a better epoch, from its line of metrics; None without validation."""

    @abstractmethod
    def summary(self, row: dict[str, Any]) -> str:
        """The validation results of an epoch in words, from its line of metrics."""

    @abstractmethod
    def save(self, model: Any, directory: Path) -> None:
        """Write a checkpoint directory."""

    @property
    def eval_model(self) -> Any:
        """The network to validate and save: the EMA model if there is one."""
        return self.model if self.ema is None else self.ema.module

    def unsharded_model(self) -> Any:
        """`eval_model` with all its weights, in the first process; all processes must call it at the same time."""
        if not self._unsharded:
            return self.eval_model
        state = _unsharded_state(self.eval_model)
        if state:
            self._unsharded[0].load_state_dict(state)
        return self._unsharded[0]

    def seed_step(self, draw: int, batch_idx: int) -> None:
        """Seed the random numbers of a batch by its part of the global batch, so that any devices draw the same.

        Args:
            draw: What they are drawn for, such as `COMPUTING`.
            batch_idx: Number of the batch in the epoch.
        """
        trainer = self.trainer
        part = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
        seed_all(self.config.seed, trainer.global_step, draw, part)

    def configure_model(self) -> None:
        """Shard the network and the EMA model if the strategy does."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self._unsharded:
            return
        self._unsharded = [copy.deepcopy(self.model)]
        _shard(self.model, self.trainer.strategy.root_device)
        if self.ema is not None:
            _shard(self.ema.module, self.trainer.strategy.root_device)
            self.ema.foreach = False  # which takes no mixture of sharded weights and other statistics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the skipped steps, the EMA model under timm's name, and the metrics so far of all processes."""
        checkpoint["skipped"] = self.skipped
        if self.ema is not None:
            average = self.ema.module
            checkpoint["state_dict_ema"] = _unsharded_state(average) if self._unsharded else average.state_dict()
        checkpoint["train_metrics"] = {}
        for name, metric in self.train_metrics.items(keep_base=True):
            with metric.sync_context():
                checkpoint["train_metrics"][name] = copy.deepcopy(metric.metric_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the skipped steps, and the metrics of all processes in the first one.

        Raises:
            InputError: If the data have changed.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None:
            data.check_same(checkpoint[type(data).__qualname__])
        self.skipped = dict(checkpoint["skipped"])
        if self.trainer.global_rank:
            return
        for name, states in checkpoint["train_metrics"].items():
            for state, value in states.items():
                setattr(self.train_metrics[name], state, value.to(self.device))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Reset the metrics at the start of an epoch, and keep the statistics of the norms at the start of a step."""
        if batch_idx == 0:  # not earlier, because the checkpoint at the end of an epoch has the metrics
            self.train_metrics.reset()
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            if self._unsharded:
                _broadcast_buffers(self.model)
            statistics = [b for b in self.model.buffers() if b.is_floating_point()]
            if len(self._statistics) != len(statistics):
                self._statistics = [b.clone() for b in statistics]
            elif statistics:
                torch._foreach_copy_(self._statistics, statistics)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Skip a step whose gradient is not finite: weights, statistics and moments stay as they were.

        Raises:
            InputError: After too many consecutive ones.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm: Any = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if norm.isfinite():
            self.skipped["consecutive"] = 0
            return
        for parameter in self.parameters():
            parameter.grad = None
        statistics = [b for b in self.model.buffers() if b.is_floating_point()]
        if statistics:
            torch._foreach_copy_(statistics, self._statistics)
        self.skipped = {name: count + 1 for name, count in self.skipped.items()}
        if self.skipped["consecutive"] >= self.config.max_nonfinite:
            raise InputError(
                f"the loss or its gradient was not finite in {self.skipped['consecutive']} consecutive steps; the "
                f"weights are those of the last finite step; the learning rate {self.config.lr} may be too high: try "
                "a lower --lr, a longer warm-up, --clip-grad 1, or bf16-mixed instead of 16-mixed --precision"
            )

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step, and update the EMA model unless it was skipped."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None and not self.skipped["consecutive"]:
            self.ema.update(self.model, step=self.trainer.global_step)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next step; schedulers of timm take its number."""
        if isinstance(scheduler, Scheduler):
            scheduler.step_update(self.trainer.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)


def _shard(model: Any, device: torch.device) -> None:
    """Shard a timm model over all processes by FSDP2, stage by stage: weights are gathered while a stage computes."""
    for parameter in model.parameters():  # FSDP takes no channels-last ones; the images' layout decides the kernels
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    modules = dict(model.named_modules())
    for name in dict.fromkeys(stage["module"] for stage in stages_of(model)):
        if name in modules and any(True for _ in modules[name].parameters()):
            fully_shard(modules[name], mesh=mesh)
    fully_shard(model, mesh=mesh)


def _unsharded_state(model: nn.Module) -> dict[str, Any]:
    """The weights of a sharded network in the first process, nothing in the others; all processes must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _broadcast_buffers(model: nn.Module) -> None:
    """Give every process the first one's running statistics, as DDP does."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = torch.cat([b.flatten() for b in buffers])
        dist.broadcast(flat, src=0)
        pieces = flat.split([b.numel() for b in buffers])
        torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(pieces, buffers, strict=True)])
