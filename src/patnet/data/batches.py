"""Which images come when: functions of the seed, the epoch and the position in the epoch."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import Sampler

from ..errors import InputError

ORDER = 101  # last part of a seed, so that the same numbers draw other random numbers elsewhere

# Widths over heights that separate groups: portrait, nearly square, landscape, panorama.
RATIOS = (0.7, 1.0, 1.4)


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


@dataclass(frozen=True)
class Batches:
    """How the images of an optimiser step are distributed.

    Attributes:
        batch_size: Images that a device computes at once.
        accumulate: Batches of a device per step.
        devices: Devices of all machines.
    """

    batch_size: int
    accumulate: int = 1
    devices: int = 1

    @property
    def global_size(self) -> int:
        """Images per step."""
        return self.batch_size * self.accumulate * self.devices

    @classmethod
    def of(cls, batch_size: int, global_batch_size: int | None, devices: int) -> Self:
        """The largest batches, up to `batch_size`, of a global batch size.

        Raises:
            InputError: If the devices, or the batch size on them, do not divide the global batch size.
        """
        if global_batch_size is None:
            return cls(batch_size, 1, devices)
        share, rest = divmod(global_batch_size, devices)
        if rest:
            near = " or ".join(str(n * devices) for n in (share, share + 1) if n)
            raise InputError(
                f"--global-batch-size {global_batch_size}: is not divisible by {devices} devices; "
                f"give {near}, or another number of devices"
            )
        size = min(batch_size, share)
        if share % size:
            fitting = max(n for n in range(1, size + 1) if share % n == 0 and (n % 2 == 0 or n in (1, share)))
            raise InputError(
                f"--batch-size {batch_size}: does not divide the {share} images per device of "
                f"--global-batch-size {global_batch_size}; {fitting} does"
            )
        return cls(size, share // size, devices)

    def __str__(self) -> str:
        times = f" x {self.accumulate} accumulated" if self.accumulate > 1 else ""
        devices = f"{self.devices} devices" if self.devices > 1 else "1 device"
        return f"global batch size {self.global_size}: {self.batch_size} images{times} on {devices}"


class Draw(NamedTuple):
    """One image of an epoch: its position in the epoch and its index in the data set."""

    epoch: int
    position: int
    item: int


class TrainBatches(Sampler[list[Draw]]):
    """The batches of one process: its parts of each global batch.

    A global batch is divided into `accumulate * devices` parts. Each takes as many images from the front of the global
    batch as from its back, mirrored, so that Mixup, which pairs an image with its mirror image in the batch, makes the
    same pairs in the parts as in the global batch.

    Args:
        count: Images in the data set, and in an epoch.
        batches: How the images of a step are distributed.
        seed: Random seed of the order.
        rank: Rank of this process.
        repeats: Repeated augmentation: how often an image comes in an epoch, which then lacks others.
        weights: Weight of each image, to draw with replacement; None takes each image once.

    Raises:
        InputError: If the batch size is odd where a global batch has several parts, or an epoch has less than one
            global batch.
    """

    mirrored = True

    def __init__(
        self,
        count: int,
        batches: Batches,
        seed: int,
        *,
        rank: int = 0,
        repeats: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.count, self.batches, self.seed, self.rank, self.weights = count, batches, seed, rank, weights
        self.repeated = RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)
        self.epoch, self.start = 0, 0
        self.parts = batches.accumulate * batches.devices
        if self.mirrored and batches.batch_size % 2 and self.parts > 1:
            raise InputError(f"--batch-size {batches.batch_size}: must be even where several batches make up a step")
        if count < batches.global_size and self.parts > 1:
            raise InputError(
                f"the {count} training images are less than one global batch of {batches.global_size}; "
                "lower --global-batch-size"
            )

    def seek(self, epoch: int, start: int) -> None:
        """Continue with batch `start` of an epoch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches in a complete epoch, wherever it starts."""
        return max(1, self.count // self.batches.global_size) * self.batches.accumulate

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch's images."""
        number = number_of(self.seed, epoch, ORDER)
        if self.weights is not None:
            generator = torch.Generator().manual_seed(number)
            probabilities = torch.as_tensor(self.weights, dtype=torch.float64)
            return torch.multinomial(probabilities, self.count, replacement=True, generator=generator).tolist()
        self.repeated.set_epoch(number)
        return list(self.repeated)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = [Draw(self.epoch, position, item) for position, item in enumerate(self.order(self.epoch))]
        size, half, global_size = self.batches.batch_size, self.batches.batch_size // 2, self.batches.global_size
        for batch in range(self.start, len(self)):
            step, micro = divmod(batch, self.batches.accumulate)
            global_batch = draws[step * global_size : (step + 1) * global_size]
            part = micro * self.batches.devices + self.rank
            if self.mirrored and self.parts > 1:
                end = (part + 1) * half
                yield global_batch[end - half : end] + global_batch[global_size - end : global_size - end + half]
            else:
                yield global_batch[part * size : (part + 1) * size]


class AspectRatioBatches(TrainBatches):
    """Batches of images with similar `ratios` of width to height, so that little of a batch is padding.

    Images left over in their groups share the last batches; what makes no complete global batch is left out of the
    epoch.

    Raises:
        InputError: If an epoch has less than one global batch.
    """

    mirrored = False

    def __init__(self, ratios: Sequence[float], batches: Batches, seed: int, *, rank: int = 0) -> None:
        super().__init__(len(ratios), batches, seed, rank=rank)
        self.groups = np.digitize(ratios, RATIOS).tolist()

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch, each global batch from one group as long as the group has enough."""
        waiting: dict[int, list[int]] = {group: [] for group in sorted(set(self.groups))}
        ordered: list[int] = []
        for index in super().order(epoch):
            group = waiting[self.groups[index]]
            group.append(index)
            if len(group) == self.batches.global_size:
                ordered += group
                group.clear()
        return ordered + [index for group in waiting.values() for index in group]
