"""Loading in which every draw is a function of the seed, the epoch and the picture's position in it.

So a run is the same whatever the number of processes, loader workers and interruptions: which picture comes when, how
it is cropped, and where a resumed run goes on, is worked out anew from these three numbers.
"""

import copy
import itertools
import math
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from ..errors import InputError

__all__ = [
    "NOT_COUNTED",
    "Draw",
    "EvalBatches",
    "SeededPictures",
    "StreamLoader",
    "TrainBatches",
    "TrainLoader",
    "eval_loader",
    "order_of",
    "seed_all",
]

NOT_COUNTED = -1  # the label, or the index, of what only fills up a process's share


class Draw(NamedTuple):
    """One picture of an epoch: where it stands in the order of that epoch, and which one of the data set it is."""

    epoch: int
    position: int
    picture: int


# What a seed is for, so that the same numbers elsewhere draw something else.
ORDER, PICTURE = 101, 102


def seed_all(*parts: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators with a number that all `parts` determine."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # torch.manual_seed would note every call for a GPU that is still to come
        torch.cuda.manual_seed(seed)


def order_of(
    count: int, seed: int, *, repeats: int = 1, weights: Sequence[float] | None = None
) -> Callable[[int], list[int]]:
    """The order of the pictures, as a function of the epoch.

    Args:
        count: Pictures in the data set, and in an epoch.
        seed: Of the run.
        repeats: Repeated augmentation: a picture comes so often in an epoch, and a share of them not at all.
        weights: Of each picture, to draw with replacement by them; None to take each picture once.
    """
    repeated = RepeatAugSampler(range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)

    def order(epoch: int) -> list[int]:
        number = int(np.random.SeedSequence((seed, epoch, ORDER)).generate_state(1)[0])
        if weights is not None:
            generator = torch.Generator().manual_seed(number)
            drawn = torch.multinomial(
                torch.as_tensor(weights, dtype=torch.float64), count, replacement=True, generator=generator
            )
            return drawn.tolist()
        repeated.set_epoch(number)
        return list(repeated)

    return order


class TrainBatches(Sampler[list[Draw]]):
    """The batches of one process: its part of each global batch.

    A global batch is cut into `accumulate * world` parts, each of which takes as many pictures from the batch's front
    as from its back, mirrored. So Mixup, which pairs a picture with its mirror image in the batch, makes the same pairs
    in the parts as in the whole.

    Args:
        order: Gives the indices of an epoch.
        count: Pictures in an epoch.
        batch_size: Pictures in a part.
        accumulate: Parts that a process computes one after the other for a step.
        world: Processes.
        rank: Of this process.

    Raises:
        InputError: If a part is not even where there are several, or an epoch has less than one global batch.
    """

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
        self.whole = batch_size * accumulate * world
        self.epoch, self.start = 0, 0
        if accumulate * world > 1:
            if batch_size % 2:
                raise InputError(f"--batch_size {batch_size}: must be even where several make up a step")
            if count < self.whole:
                raise InputError(
                    f"the {count} training pictures make no global batch of {self.whole}; lower --global_batch_size"
                )

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever it starts."""
        return max(1, self.count // self.whole) * self.accumulate

    def part(self, whole: list[Draw], number: int) -> list[Draw]:
        """One part of a global batch, by its number below `accumulate * world`."""
        if self.accumulate * self.world == 1:
            return whole
        half = self.batch_size // 2
        front = slice(number * half, (number + 1) * half)
        back = slice(len(whole) - front.stop, len(whole) - front.start)
        return whole[front] + whole[back]

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = [Draw(self.epoch, position, picture) for position, picture in enumerate(self.order(self.epoch))]
        for batch in range(self.start, len(self)):
            step, micro = divmod(batch, self.accumulate)
            whole = draws[step * self.whole : (step + 1) * self.whole]
            yield self.part(whole, micro * self.world + self.rank)


class EvalBatches(Sampler[list[int]]):
    """Every `world`-th batch of a data set in its order: the same batches as in one process, shared out.

    A process that would have one batch less repeats the data set's first one as `NOT_COUNTED`, for all must take as
    many steps.
    """

    def __init__(self, count: int, batch_size: int, *, world: int = 1, rank: int = 0) -> None:
        self.count, self.batch_size, self.world, self.rank = count, batch_size, world, rank

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.count / self.batch_size) / self.world)

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            start = (turn * self.world + self.rank) * self.batch_size
            if start < self.count:
                yield list(range(start, min(start + self.batch_size, self.count)))
            else:
                yield [-1 - index for index in range(min(self.batch_size, self.count))]


class SeededPictures(Dataset):
    """A data set of pictures whose augmentation is drawn anew from the seed for each `Draw`.

    A picture that cannot be read is replaced by the next one that can, and named.

    Args:
        dataset: Gives `(tensor, label)` for an index, and has a `transform`.
        seed: Of the run.
        transforms: `(first epoch, transform)`, in ascending order; the last one begun holds. None leaves the data
            set's.
        strict: Raise for a picture that cannot be read.

    Items are `(tensor, label, faults)`, with a sentence for each picture that could not be read.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        transforms: Sequence[tuple[int, Callable]] | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.dataset, self.seed, self.transforms, self.strict = dataset, seed, transforms, strict

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Any, list[str]]:
        seed_all(self.seed, draw.epoch, draw.position, PICTURE)
        if self.transforms is not None:
            self.dataset.transform = next(t for first, t in reversed(self.transforms) if first <= draw.epoch)
        faults: list[str] = []
        for further in range(len(self)):
            index = (draw.picture + further) % len(self)
            try:
                picture, label = self.dataset[index]
            except (InputError, OSError) as error:
                if self.strict:
                    raise
                faults.append(" ".join(str(error).split()) or f"picture {index}: cannot be read")
            else:
                return picture, label, faults
        raise InputError(f"no picture of the data set can be read ({faults[0]})")


def _collate(items: list[tuple[Tensor, Any, list[str]]]) -> tuple[Tensor, Any, list[str]]:
    return (
        torch.stack([picture for picture, _, _ in items]),
        default_collate([label for _, label, _ in items]),
        [fault for _, _, faults in items for fault in faults],
    )


def _leave_signals(worker: int) -> None:
    """A signal to all processes, as clusters send it, is answered by the one that trains, which ends its loaders."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(kind, signal.SIG_IGN)


class TrainLoader(DataLoader):
    """Batches of `(pictures, labels, faults)`, epoch after epoch, which goes on where `load_state_dict` says.

    Args:
        pictures: What to load from.
        batches: Which pictures when, such as `TrainBatches`.
        **kwargs: Of `torch.utils.data.DataLoader`.
    """

    def __init__(self, pictures: SeededPictures, batches: Any, **kwargs: Any) -> None:
        usual = {"collate_fn": _collate, "worker_init_fn": _leave_signals}
        super().__init__(pictures, batch_sampler=batches, **{**usual, **kwargs})
        self.batches = batches
        self.given = 0

    def __iter__(self) -> Any:
        if self.given == len(self.batches):
            self.batches.epoch, self.given = self.batches.epoch + 1, 0
        self.batches.start = self.given
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.batches.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.batches.epoch, self.given = state_dict["epoch"], state_dict["given"]


class _SeededStream(IterableDataset):
    """A stream whose augmentation is drawn from the seed, the epoch, the loader process and the place in its share."""

    def __init__(self, dataset: Any, seed: int, transforms: Sequence[tuple[int, Callable]]) -> None:
        self.dataset, self.seed, self.transforms, self.epoch = dataset, seed, transforms, 0
        self.world, self.rank = 1, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Any, list[str]]]:
        # A reader goes on with the shuffling of the epoch before, so each epoch has a new one.
        dataset = copy.copy(self.dataset)
        dataset.transform = next(t for first, t in reversed(self.transforms) if first <= self.epoch)
        if hasattr(dataset, "reader"):
            dataset.reader = copy.copy(dataset.reader)
            dataset.reader.worker_seed = self.seed + self.epoch  # where no loader process has its own
            dataset.reader.dist_rank, dataset.reader.dist_num_replicas = self.rank, self.world
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self.epoch)
        worker = get_worker_info()
        pictures = iter(dataset)
        for place in itertools.count():
            seed_all(self.seed, self.epoch, place, worker.id if worker else 0, PICTURE)
            try:
                picture, label = next(pictures)
            except StopIteration:
                return
            yield picture, label, []


class StreamLoader(DataLoader):
    """Batches of a stream, as timm's readers of tar shards and of streamed data sets give it.

    The readers share a stream out over processes and shuffle it by the epoch. To go on within an epoch the batches that
    were given are read again and passed over.

    Args:
        dataset: An `IterableDataset` of timm's.
        seed: Of the run.
        transforms: `(first epoch, transform)`, in ascending order; the last one begun holds.
        batches: In an epoch; what a stream has beyond is left out.
        batch_size: Pictures in a batch.
        **kwargs: Of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        transforms: Sequence[tuple[int, Callable]],
        *,
        batches: int,
        batch_size: int,
        **kwargs: Any,
    ) -> None:
        if hasattr(dataset, "set_loader_cfg"):
            dataset.set_loader_cfg(num_workers=kwargs.get("num_workers", 0))
            dataset.reader.batch_size = batch_size  # each loader process then gives whole batches
        self.stream = _SeededStream(dataset, seed, transforms)
        kwargs["generator"] = torch.Generator()  # of the loader processes' seeds, by which the readers shuffle
        kwargs["worker_init_fn"] = _leave_signals
        super().__init__(self.stream, batch_size=batch_size, collate_fn=_collate, drop_last=True, **kwargs)
        self.batches = batches
        self.given = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        if self.given == self.batches:
            self.stream.epoch, self.given = self.stream.epoch + 1, 0
        self.generator.manual_seed(
            int(np.random.SeedSequence((self.stream.seed, self.stream.epoch, ORDER)).generate_state(1)[0])
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.stream.world, self.stream.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        for batch in itertools.islice(super().__iter__(), self.given, self.batches):
            self.given += 1
            yield batch
        if self.given < self.batches:
            raise InputError(
                f"the stream of training pictures ended after {self.given} of {self.batches} batches; a shard of it is "
                "damaged, or there are fewer shards than --devices times --workers, so lower --workers"
            )

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.stream.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.stream.epoch, self.given = state_dict["epoch"], state_dict["given"]


class _Numbered(Dataset):
    """A data set whose items come with their index, and `NOT_COUNTED` for what only fills up."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        if index < 0:
            picture, other = self.dataset[-1 - index]
            return picture, other, NOT_COUNTED
        return *self.dataset[index], index


class _NumberedStream(IterableDataset):
    """A stream whose items come with a number, of no meaning but that they count."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        for number, (picture, other) in enumerate(self.dataset):
            yield picture, other, number


def _collate_numbered(items: list[tuple[Tensor, Any, int]]) -> tuple[Tensor, list[Any], list[int]]:
    pictures, others, indices = zip(*items, strict=True)
    return torch.stack(pictures), list(others), list(indices)


def eval_loader(
    dataset: Any,
    batch_size: int,
    *,
    world: int = 1,
    rank: int = 0,
    collate: Callable = _collate_numbered,
    **kwargs: Any,
) -> DataLoader:
    """Batches of `(pictures, what came with them, indices)` in the data set's order, shared out over processes.

    Args:
        dataset: Gives a picture and something else.
        batch_size: Pictures in a batch.
        world: Processes.
        rank: Of this process.
        collate: Makes a batch of `(picture, what came with it, index)`; pictures of one size are stacked.
        **kwargs: Of `torch.utils.data.DataLoader`.
    """
    kwargs |= {"collate_fn": collate, "worker_init_fn": _leave_signals}
    if isinstance(dataset, IterableDataset):
        return DataLoader(_NumberedStream(dataset), batch_size=batch_size, **kwargs)
    batches = EvalBatches(len(dataset), batch_size, world=world, rank=rank)
    return DataLoader(_Numbered(dataset), batch_sampler=batches, **kwargs)
