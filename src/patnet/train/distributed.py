"""Devices and processes: the trainer on them, and weights sharded over them by torch's FSDP2."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..errors import InputError
from ..models import stages_of

__all__ = ["broadcast_buffers", "interruptible", "is_main_process", "make_trainer", "shard", "unsharded_state"]

# Lightning's remarks on the machine and on what is so on purpose.
REMARKS = (
    r".*does not have many workers.*",
    r".*'pin_memory' argument is set as true but no accelerator.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*LeafSpec.*",
    r".*Total length of `list` across ranks is zero.*",  # without validation
    r".*have no `val_dataloader`.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*module.* in eval mode at the start of training.*",
    r".*It is recommended to use `self.log\(.*, sync_dist=True\)`.*",  # torchmetrics has synchronised already
)


def is_main_process() -> bool:
    """Whether this is the first process of a run, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def make_trainer(
    accelerator: str, devices: str, *, strategy: str = "auto", precision: Any = "32-true", **kwargs: Any
) -> L.Trainer:
    """A Lightning trainer without remarks on the machine, in the processes of torchrun where it started them.

    Args:
        accelerator: Device type, as Lightning names it.
        devices: Number of devices, or a list of them.
        strategy: Lightning's name of a strategy, or fsdp.
        precision: Precision, as Lightning names it.
        **kwargs: Further arguments of `lightning.Trainer`.

    Raises:
        InputError: If there is no such device, strategy or precision.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in REMARKS:
        warnings.filterwarnings("ignore", message=message)
    if TorchElasticEnvironment.detect():
        devices = os.environ["LOCAL_WORLD_SIZE"]
        kwargs["num_nodes"] = int(os.environ["WORLD_SIZE"]) // int(devices)
    # The checkpoints are unsharded, so that any number of processes reads them.
    kwargs["strategy"] = ModelParallelStrategy(save_distributed_checkpoint=False) if strategy == "fsdp" else strategy
    kwargs |= {"precision": precision, "enable_model_summary": False}
    try:
        return L.Trainer(accelerator=accelerator, devices=int(devices) if devices.isdigit() else devices, **kwargs)
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"--accelerator {accelerator} --devices {devices} --strategy {strategy} --precision {precision}: "
            f"not available here ({reason}); try --accelerator cpu --strategy auto --precision 32-true"
        ) from error


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, after which Lightning exits and leaves Ctrl-C ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stopped


def shard(model: Any, device: torch.device) -> None:
    """Shard a network over all processes, each stage by itself: its weights are gathered while it computes.

    Args:
        model: A timm model; one without `feature_info` is sharded as one.
        device: Device of this process.
    """
    for parameter in model.parameters():  # FSDP takes no channels-last ones; the images' layout decides the kernels
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for name in dict.fromkeys(stage["module"] for stage in stages_of(model)):
        stage = model.get_submodule(name)
        if any(True for _ in stage.parameters()):
            fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)


def unsharded_state(model: nn.Module) -> dict[str, Any]:
    """The weights of a sharded network in the first process, nothing in the others; all processes must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the first one's running statistics, as DDP does."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = torch.cat([b.flatten() for b in buffers])
        dist.broadcast(flat, src=0)
        pieces = flat.split([b.numel() for b in buffers])
        torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(pieces, buffers, strict=True)])
