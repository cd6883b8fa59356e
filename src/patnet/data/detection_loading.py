"""Pictures of different sizes on their way to a detector: one scale, batches of one shape, lists in place of stacks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from torchvision.transforms import v2

from ..errors import InputError
from .loading import Draw, order_of

__all__ = ["AspectBatches", "collate_draws", "collate_pictures", "detection_transform"]

# Borders between groups of width over height: upright, upright to square, square to lying, wide.
RATIOS = (0.7, 1.0, 1.4)


def detection_transform(
    *,
    shorter: int | Sequence[int] | None = 800,
    longer: int = 1333,
    hflip: float = 0.0,
    vflip: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Callable:
    """Scale `(image, target)` by one rule, boxes and masks with it, and perhaps flip them.

    Args:
        shorter: The picture's shorter side in px afterwards; one of several is drawn. None leaves the size, for a
            detector that resizes by itself.
        longer: What the longer side may have at most; the shorter one is then less than `shorter`.
        hflip: Probability of a left-right flip.
        vflip: Probability of an up-down flip.
        dtype: Of the image; floating-point ones lie in [0, 1].

    Raises:
        InputError: If the sides do not fit each other.
    """
    common = [v2.RandomHorizontalFlip(hflip), v2.RandomVerticalFlip(vflip), v2.ToDtype(dtype, scale=True)]
    if shorter is None:
        return v2.Compose(common)
    sides = [shorter] if isinstance(shorter, int) else list(shorter)
    if not sides or min(sides) < 1 or max(sides) > longer:
        raise InputError(
            f"shorter side {shorter}, longer {longer}: give 1 or more px, the shorter not above the longer"
        )
    # With a longer side of as many px, torchvision asks for the longer one alone.
    resizes = [v2.Resize(s, max_size=longer) if s < longer else v2.Resize(None, max_size=longer) for s in sides]
    resize = resizes[0] if len(resizes) == 1 else v2.RandomChoice(resizes)
    return v2.Compose([resize, *common])


def collate_pictures(items: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    """A batch of pictures of different sizes: a list of the images, one of the targets, and so on."""
    return tuple(list(part) for part in zip(*items, strict=True))


def collate_draws(items: Sequence[tuple[Any, Any, list[str]]]) -> tuple[list[Any], list[Any], list[str]]:
    """A training batch of `SeededPictures`: a list of the images, one of the targets, and what could not be read."""
    images, targets, faults = collate_pictures(items)
    return images, targets, [fault for found in faults for fault in found]


class AspectBatches(Sampler[list[Draw]]):
    """The batches of one process, each of pictures that are alike in shape, so that little of a batch is padding.

    Which pictures a batch holds, and when it comes, is a function of the seed and the epoch. Pictures that are left
    over in their groups share the last batches; what makes no whole global batch is left out of the epoch.

    Args:
        ratios: Width over height of each picture.
        batch_size: Pictures in a part.
        seed: Of the run.
        accumulate: Parts that a process computes one after the other for a step.
        world: Processes.
        rank: Of this process.
        borders: Of the groups, ascending ratios.

    Raises:
        InputError: If an epoch has less than one global batch.
    """

    def __init__(
        self,
        ratios: Sequence[float],
        batch_size: int,
        seed: int,
        *,
        accumulate: int = 1,
        world: int = 1,
        rank: int = 0,
        borders: Sequence[float] = RATIOS,
    ) -> None:
        self.groups = np.digitize(ratios, borders).tolist()
        self.batch_size, self.accumulate, self.world, self.rank = batch_size, accumulate, world, rank
        self.whole = batch_size * accumulate * world
        self.shuffled = order_of(len(self.groups), seed)
        self.epoch, self.start = 0, 0
        if len(self.groups) < self.whole and accumulate * world > 1:
            raise InputError(
                f"the {len(self.groups)} training pictures make no global batch of {self.whole}; "
                "lower --global_batch_size"
            )

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever it starts."""
        return max(1, len(self.groups) // self.whole) * self.accumulate

    def order(self, epoch: int) -> list[int]:
        """The pictures of an epoch, each global batch from one group as long as there are enough of it."""
        waiting: dict[int, list[int]] = {group: [] for group in sorted(set(self.groups))}
        ordered: list[int] = []
        for picture in self.shuffled(epoch):
            group = waiting[self.groups[picture]]
            group.append(picture)
            if len(group) == self.whole:
                ordered += group
                group.clear()
        return ordered + [picture for group in waiting.values() for picture in group]

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = [Draw(self.epoch, position, picture) for position, picture in enumerate(self.order(self.epoch))]
        for batch in range(self.start, len(self)):
            step, micro = divmod(batch, self.accumulate)
            first = step * self.whole + (micro * self.world + self.rank) * self.batch_size
            yield draws[first : first + self.batch_size]
