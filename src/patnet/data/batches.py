"""Which items come when: functions of the seed, the epoch and the position in the epoch."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from ..errors import InputError

PADDING = -1  # index of an item that only fills up a process's share of an evaluation

ORDER = 101  # last part of a seed, so that the same numbers draw other random numbers elsewhere

# Widths over heights that separate groups: portrait, nearly square, landscape, panorama.
RATIOS = (0.7, 1.0, 1.4)


class Draw(NamedTuple):
    """One item of an epoch: its position in the epoch and its index in the data set."""

    epoch: int
    position: int
    item: int


def number_of(*parts: int) -> int:
    """A random number that all `parts` determine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_all(*parts: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators with a number that all `parts` determine."""
    seed = number_of(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # torch.manual_seed would queue every call until a GPU is initialised
        torch.cuda.manual_seed(seed)


def epoch_order(
    count: int, seed: int, *, repeats: int = 1, weights: Sequence[float] | None = None
) -> Callable[[int], list[int]]:
    """The order of the items, as a function of the epoch.

    Args:
        count: Items in the data set, and in an epoch.
        seed: Random seed of the run.
        repeats: Repeated augmentation: how often an item comes in an epoch, which then lacks others.
        weights: Weight of each item, to draw with replacement; None takes each item once.
    """
    repeated = RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)

    def order(epoch: int) -> list[int]:
        number = number_of(seed, epoch, ORDER)
        if weights is not None:
            generator = torch.Generator().manual_seed(number)
            probabilities = torch.as_tensor(weights, dtype=torch.float64)
            return torch.multinomial(probabilities, count, replacement=True, generator=generator).tolist()
        repeated.set_epoch(number)
        return list(repeated)

    return order


class TrainBatches(Sampler[list[Draw]]):
    """The batches of one process: its parts of each global batch.

    A global batch is divided into `accumulate * world` parts. Each takes as many items from the front of the global
    batch as from its back, mirrored, so that Mixup, which pairs an item with its mirror image in the batch, makes the
    same pairs in the parts as in the global batch.

    Args:
        order: Gives the `count` indices of an epoch.
        count: Items in an epoch.
        batch_size: Items in a part.
        accumulate: Parts that a process computes one after the other for one step.
        world: Number of processes.
        rank: Rank of this process.

    Raises:
        InputError: If `batch_size` is odd where a global batch has several parts, or an epoch has less than one global
            batch.
    """

    mirrored = True

    def __init__(
        self,
        order: Callable[[int], list[int]],
        count: int,
        batch_size: int,
        *,
        accumulate: int = 1,
        world: int = 1,
        rank: int = 0,
    ) -> None:
        self.order, self.count, self.batch_size = order, count, batch_size
        self.accumulate, self.world, self.rank = accumulate, world, rank
        self.global_batch_size = batch_size * accumulate * world
        self.epoch, self.start = 0, 0
        if self.mirrored and batch_size % 2 and accumulate * world > 1:
            raise InputError(f"--batch-size {batch_size}: must be even where several batches make up a step")
        if count < self.global_batch_size and accumulate * world > 1:
            raise InputError(
                f"the {count} training images are less than one global batch of {self.global_batch_size}; "
                "lower --global-batch-size"
            )

    def seek(self, epoch: int, start: int) -> None:
        """Continue with batch `start` of an epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches in a complete epoch, wherever it starts."""
        return max(1, self.count // self.global_batch_size) * self.accumulate

    def _part(self, draws: list[Draw], number: int) -> list[Draw]:
        """One part of a global batch, by its number below `accumulate * world`."""
        if self.accumulate * self.world == 1:
            return draws
        half = self.batch_size // 2
        front = slice(number * half, (number + 1) * half)
        back = slice(len(draws) - front.stop, len(draws) - front.start)
        return draws[front] + draws[back]

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = [Draw(self.epoch, position, item) for position, item in enumerate(self.order(self.epoch))]
        for batch in range(self.start, len(self)):
            step, micro = divmod(batch, self.accumulate)
            global_batch = draws[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            yield self._part(global_batch, micro * self.world + self.rank)


class AspectRatioBatches(TrainBatches):
    """Batches of images with similar `ratios` of width to height, so that little of a batch is padding.

    Images left over in their groups share the last batches; what makes no complete global batch is left out of the
    epoch. `kwargs` are `accumulate`, `world` and `rank`.

    Raises:
        InputError: If an epoch has less than one global batch.
    """

    mirrored = False

    def __init__(self, ratios: Sequence[float], batch_size: int, seed: int, **kwargs: int) -> None:
        super().__init__(self._grouped, len(ratios), batch_size, **kwargs)
        self.groups = np.digitize(ratios, RATIOS).tolist()
        self.shuffled = epoch_order(len(ratios), seed)

    def _grouped(self, epoch: int) -> list[int]:
        """The images of an epoch, each global batch from one group as long as the group has enough."""
        waiting: dict[int, list[int]] = {group: [] for group in sorted(set(self.groups))}
        ordered: list[int] = []
        for index in self.shuffled(epoch):
            group = waiting[self.groups[index]]
            group.append(index)
            if len(group) == self.global_batch_size:
                ordered += group
                group.clear()
        return ordered + [index for group in waiting.values() for index in group]

    def _part(self, draws: list[Draw], number: int) -> list[Draw]:
        return draws[number * self.batch_size : (number + 1) * self.batch_size]


def eval_batches(count: int, batch_size: int, *, world: int = 1, rank: int = 0) -> list[list[int]]:
    """Every `world`-th batch of a data set in its order: the batches of one process, distributed over several.

    A process that would have one batch less repeats the first batch as padding, since all processes must take as many
    steps; index `-1 - i` is item `i` as padding.
    """
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    padding = [[-1 - index for index in batch] for batch in batches[:1]]
    return (batches + padding * (-len(batches) % world))[rank::world]
