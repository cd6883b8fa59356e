"""Small networks on one GPU: steps as CUDA graphs, and runs side by side, because a step has many small kernels."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

EAGER_STEPS = 3  # before the capture, as PyTorch asks for


class Step:
    """A training step, which on a GPU is captured in a CUDA graph after the first calls, and replayed.

    Args:
        compute: Forward pass, loss, backward pass and optimizer step, from tensors that are changed in place between
            calls; returns the loss.
        optimizer: The optimizer; on a GPU its learning rate becomes a tensor, so that the graph reads it.
        device: Type of the device.
    """

    def __init__(self, compute: Callable[[], Tensor], optimizer: Optimizer, device: str) -> None:
        self.compute, self.graph, self.calls = compute, None, 0
        self.captured = device == "cuda"
        for group in optimizer.param_groups if self.captured else []:
            group |= {"lr": torch.tensor(group["lr"], device=device), "capturable": True}

    def __call__(self) -> Tensor:
        """Do the step; returns its loss."""
        self.calls += 1
        if not self.captured or self.calls <= EAGER_STEPS:
            return self.compute()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
                self.loss = self.compute()
        self.graph.replay()
        return self.loss.clone()


def interleave(
    works: Sequence[Callable[[], Generator[Any, None, dict[str, Any]]]], count: int
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Run generators, `count` at a time, a step of each in turn and each on a stream of its own.

    Gives the number of a generator and what it returned, or its error, as they end.
    """
    waiting = list(enumerate(works))[::-1]
    running: list[tuple[int, torch.cuda.Stream, Generator[Any, None, dict[str, Any]]]] = []
    while waiting or running:
        while waiting and len(running) < count:
            number, work = waiting.pop()
            running.append((number, torch.cuda.Stream(), work()))
        for turn in list(running):
            number, stream, steps = turn
            try:
                with torch.cuda.stream(stream):
                    next(steps)
            except StopIteration as end:
                running.remove(turn)
                yield number, end.value
            except Exception as error:
                running.remove(turn)
                yield number, error
