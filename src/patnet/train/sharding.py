"""Training with weights, gradients and the optimiser's moments divided over the processes: torch's FSDP2."""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..models.stages import stages_of

__all__ = ["is_sharded", "same_buffers", "shard", "sharding_strategy", "whole_state"]


def sharding_strategy() -> ModelParallelStrategy:
    """Lightning's strategy for FSDP2, whose checkpoints are whole, so that any number of processes reads them."""
    return ModelParallelStrategy(save_distributed_checkpoint=False)


def is_sharded(strategy: Any) -> bool:
    """Whether a trainer's strategy divides the weights."""
    return isinstance(strategy, ModelParallelStrategy)


def shard(model: Any, device: torch.device) -> None:
    """Divide a network over all processes, the stages each for itself: one is whole while it computes.

    Args:
        model: A timm model; one without `feature_info` is divided as one.
        device: Of this process.
    """
    for parameter in model.parameters():  # it takes no channels-last ones; the pictures' layout decides the kernels
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for name in dict.fromkeys(stage["module"] for stage in stages_of(model)):
        stage = model.get_submodule(name)
        if any(True for _ in stage.parameters()):
            fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The weights of a divided network in the first process, nothing in the others; all have to ask at once."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def same_buffers(*models: nn.Module) -> None:
    """Give every process the first one's running statistics, as DDP does."""
    buffers = [b for b in chain.from_iterable(m.buffers() for m in models) if b.is_floating_point()]
    if buffers:
        flat = torch.cat([b.flatten() for b in buffers])
        dist.broadcast(flat, src=0)
        pieces = flat.split([b.numel() for b in buffers])
        torch._foreach_copy_(buffers, [p.view_as(b) for p, b in zip(pieces, buffers, strict=True)])
