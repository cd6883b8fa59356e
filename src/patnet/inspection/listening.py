"""Finding the layers of a network, and listening to what goes through them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models.patnet import Stage

__all__ = ["Layer", "find_layers", "listening", "picture_batches"]


class Layer(NamedTuple):
    """A module of a network, with its stage and its number among its like there, both from 1."""

    name: str
    stage: int
    number: int
    module: Any

    @property
    def label(self) -> str:
        """`"3.2"` for the second of stage 3."""
        return f"{self.stage}.{self.number}"


def find_layers(model: nn.Module, kind: type[nn.Module]) -> list[Layer]:
    """The modules of a type, in the network's order; all of stage 1 where the network has no `Stage`."""
    layers: list[Layer] = []
    stage = 0
    for name, module in model.named_modules():
        stage += isinstance(module, Stage)
        if isinstance(module, kind):
            number = 1 + sum(layer.stage == max(stage, 1) for layer in layers)
            layers.append(Layer(name, max(stage, 1), number, module))
    return layers


def picture_batches(model: nn.Module, pictures: Tensor | Iterable[Any], batch_size: int = 32) -> Iterator[Tensor]:
    """Batches `(N, in_chans, H, W)` on the network's device and in its dtype.

    Args:
        model: The network.
        pictures: `(N, in_chans, H, W)`, or a loader whose batches are such, or lists that begin with such.
        batch_size: Pictures in a batch, where they are one tensor.

    Raises:
        InputError: If a batch is something else.
    """
    like = next(model.parameters())
    for batch in pictures.split(batch_size) if isinstance(pictures, Tensor) else pictures:
        images = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise InputError("pictures must be a tensor (N, in_chans, H, W), or a loader that gives such batches")
        if len(images):
            yield images.to(like.device, like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; the mode of each of its modules is restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def listening(model: nn.Module, hooks: Sequence[tuple[nn.Module, str, Callable[[Tensor], None]]]) -> Iterator[None]:
    """Call functions with what goes into modules or comes out, while the network is in evaluation mode.

    Args:
        model: The network; its mode is restored after.
        hooks: A module, `"input"` or `"output"`, and the function that takes that tensor.
    """
    handles = [
        module.register_forward_pre_hook(lambda _, args, take=take: take(args[0]))
        if side == "input"
        else module.register_forward_hook(lambda _, args, output, take=take: take(output))
        for module, side, take in hooks
    ]
    try:
        with evaluating(model), torch.inference_mode():
            yield
    finally:
        for handle in handles:
            handle.remove()
