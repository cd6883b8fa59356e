"""Layers of a network by their type, and hooks that read what goes into and comes out of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import stages_of


class Layer(NamedTuple):
    """A module of a network, with its stage and its number in that stage, both from 1, see `find_layers`."""

    name: str
    stage: int
    number: int
    module: Any

    @property
    def label(self) -> str:
        """`"3.2"`: the second one of stage 3."""
        return f"{self.stage}.{self.number}"


class Hook(NamedTuple):
    """A function that is called with the first input or the output of a module in every forward pass."""

    module: nn.Module
    side: Literal["input", "output"]
    take: Callable[[Tensor], None]

    def register(self) -> Any:
        """Register with the module; gives the handle that removes it."""
        if self.side == "input":
            return self.module.register_forward_pre_hook(lambda _, args: self.take(args[0]))
        return self.module.register_forward_hook(lambda _, args, output: self.take(output))


def find_layers(model: nn.Module, types: type | tuple[type, ...], blocks: Sequence[Layer] = ()) -> list[Layer]:
    """The modules of a type in the network's order; all are of stage 1 in a network that names no stages.

    A module inside one of `blocks` has that block's stage and number. Others are numbered, after the stage's blocks.
    """
    prefixes = [f"{stage['module']}." for stage in stages_of(model)]
    layers: list[Layer] = []
    numbered = [block.stage for block in blocks]
    for name, module in model.named_modules():
        if isinstance(module, types):
            stage = next((i for i, prefix in enumerate(prefixes, 1) if f"{name}.".startswith(prefix)), 1)
            block = next((block for block in blocks if name.startswith(f"{block.name}.")), None)
            number = block.number if block else 1 + sum(place == stage for place in numbered)
            layers.append(Layer(name, stage, number, module))
            numbered += [] if block else [stage]
    return layers


def image_batches(model: nn.Module, images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """Batches `(N, in_chans, H, W)` on the network's device and in its dtype.

    Args:
        images: A tensor `(N, in_chans, H, W)`, or a loader whose batches are such tensors, or begin with one.

    Raises:
        InputError: If a batch is something else.
    """
    like = next(model.parameters())
    for batch in images.split(32) if isinstance(images, Tensor) else images:
        first = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(first, Tensor) or first.ndim != 4:
            raise InputError("images must be a tensor (N, in_chans, H, W), or a loader that gives such batches")
        if len(first):
            yield first.to(like.device, like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each of its modules has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(model: nn.Module, hooks: Sequence[Hook]) -> Iterator[None]:
    """The network in evaluation mode with hooks, which are removed afterwards."""
    with ExitStack() as stack, evaluating(model), torch.inference_mode():
        for hook in hooks:
            stack.callback(hook.register().remove)
        yield
