"""Loaders whose every random number is determined by the seed, the epoch and the position in the epoch.

A run is therefore the same for any number of processes and loader workers, and after any interruption: which image
comes when, how it is cropped, and where a resumed run continues are computed from these three numbers.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from ..errors import InputError
from .batches import ORDER, PADDING, Draw, TrainBatches, epoch_order, eval_batches, number_of, seed_all
from .readable import Policy, read_item, read_stream
from .workers import Loader

__all__ = [
    "PADDING",
    "Draw",
    "SeededDataset",
    "StreamLoader",
    "TrainBatches",
    "TrainLoader",
    "epoch_order",
    "eval_loader",
    "seed_all",
]

AUGMENTATION = 102  # last part of a seed, so that the same numbers draw other random numbers elsewhere

# `(first epoch, transform)` in ascending order; the last one that has begun applies.
Transforms = Sequence[tuple[int, Callable]]


def _transform_in(transforms: Transforms, epoch: int) -> Callable:
    return next(transform for first, transform in reversed(transforms) if first <= epoch)


class SeededDataset(Dataset):
    """A data set whose augmentation is determined by the seed and the `Draw`.

    Items are `(image, label, faults)`, with one line for each image that could not be read.

    Args:
        dataset: Gives `(image, label)` for an index.
        seed: Random seed of the run.
        transforms: `(first epoch, transform)` in ascending order; the last one that has begun applies.
        strict: Raise for an image that cannot be read; otherwise the next one that can be read replaces it.
        joint: Whether a transform takes and gives `(image, label)`.
    """

    def __init__(
        self, dataset: Any, seed: int, transforms: Transforms, *, strict: bool = False, joint: bool = False
    ) -> None:
        self.dataset, self.seed, self.transforms, self.joint = dataset, seed, transforms, joint
        self.policy: Policy = "raise" if strict else "replace"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Any, Any, list[str]]:
        seed_all(self.seed, draw.epoch, draw.position, AUGMENTATION)
        transform = _transform_in(self.transforms, draw.epoch)
        return read_item(self.dataset, draw.item, transform, policy=self.policy, joint=self.joint)


class _SeededStream(IterableDataset):
    """A stream whose augmentation is determined by the seed, the epoch, the worker and the position in its share."""

    epoch = 0

    def __init__(self, dataset: Any, seed: int, transforms: Transforms, world: int, rank: int) -> None:
        self.dataset, self.seed, self.transforms, self.world, self.rank = dataset, seed, transforms, world, rank

    def seek(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Any, list[str]]]:
        # A reader would continue the shuffling of the previous epoch, so each epoch has a copy.
        place = {"dist_rank": self.rank, "dist_num_replicas": self.world}
        dataset = _with_reader(self.dataset, worker_seed=self.seed + self.epoch, **place)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self.epoch)
        transform, worker = _transform_in(self.transforms, self.epoch), get_worker_info()
        items = read_stream(dataset)
        for position in itertools.count():
            seed_all(self.seed, self.epoch, position, worker.id if worker else 0, AUGMENTATION)
            item = next(items, None)
            if item is None:
                return
            yield transform(item[0]), item[1], []


def _with_reader(dataset: Any, **attributes: Any) -> Any:
    """A copy of a stream of timm's, whose reader has other attributes; its constructor takes none of them."""
    if not hasattr(dataset, "reader"):
        return dataset
    dataset = copy.copy(dataset)
    dataset.reader = copy.copy(dataset.reader)
    for name, value in attributes.items():
        setattr(dataset.reader, name, value)
    return dataset


class _Evaluated(Dataset):
    """Items `(image, label, index)`, with the index `PADDING` for those that only fill up."""

    def __init__(self, dataset: Any, transform: Callable | None, policy: Policy, joint: bool) -> None:
        self.dataset, self.transform, self.policy, self.joint = dataset, transform, policy, joint

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        number = index if index >= 0 else -1 - index
        image, label, _ = read_item(self.dataset, number, self.transform, policy=self.policy, joint=self.joint)
        return image, label, index if index >= 0 else PADDING


class _EvaluatedStream(IterableDataset):
    """Items `(image, label, number)` of a stream."""

    def __init__(self, dataset: Any, transform: Callable | None) -> None:
        self.dataset, self.transform = dataset, transform

    def __iter__(self) -> Iterator[tuple[Any, Any, int]]:
        for number, (image, label) in enumerate(read_stream(self.dataset)):
            yield self.transform(image) if self.transform else image, label, number


def _collate_train(items: list[tuple[Any, Any, list[str]]], stack: bool) -> tuple[Any, Any, list[str]]:
    images, labels, faults = (list(part) for part in zip(*items, strict=True))
    flat = list(itertools.chain(*faults))
    return (torch.stack(images), default_collate(labels), flat) if stack else (images, labels, flat)


def _collate_eval(items: list[tuple[Any, Any, int]], stack: bool) -> tuple[Any, list[Any], list[int]]:
    images, labels, indices = (list(part) for part in zip(*items, strict=True))
    return torch.stack(images) if stack else images, labels, indices


class _EpochLoader(Loader):
    epoch, given = 0, 0

    def __iter__(self) -> Any:
        if self.given == len(self):
            self.epoch, self.given = self.epoch + 1, 0
        for batch in self._rest_of_epoch():
            self.given += 1
            yield batch

    def _rest_of_epoch(self) -> Iterator[Any]:
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from what `state_dict` gave."""
        self.epoch, self.given = state_dict["epoch"], state_dict["given"]


class TrainLoader(_EpochLoader):
    """Batches of `(images, labels, faults)`, epoch after epoch; continues where `load_state_dict` says.

    Images and labels are tensors, or lists without `stack`; `kwargs` are options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: SeededDataset, batches: TrainBatches, *, stack: bool = True, **kwargs: Any) -> None:
        super().__init__(dataset, partial(_collate_train, stack=stack), batch_sampler=batches, **kwargs)
        self.batches = batches

    def _rest_of_epoch(self) -> Iterator[Any]:
        self.batches.seek(self.epoch, self.given)
        return super()._rest_of_epoch()


class StreamLoader(_EpochLoader):
    """Batches of a stream, as timm's readers of tar shards and of streamed data sets give it.

    The readers distribute a stream over processes and shuffle it by the epoch. To resume within an epoch, the batches
    that were given are read again and skipped. An epoch has `batches` batches; the rest of the stream is left out.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        transforms: Transforms,
        *,
        batches: int,
        batch_size: int,
        world: int = 1,
        rank: int = 0,
        **kwargs: Any,
    ) -> None:
        dataset = _with_reader(dataset, batch_size=batch_size)  # so that each worker gives complete batches
        if hasattr(dataset, "set_loader_cfg"):
            dataset.set_loader_cfg(num_workers=kwargs.get("num_workers", 0))
        self.stream = _SeededStream(dataset, seed, transforms, world, rank)
        kwargs["generator"] = torch.Generator()  # of the workers' seeds, by which the readers shuffle
        collate = partial(_collate_train, stack=True)
        super().__init__(self.stream, collate, batch_size=batch_size, drop_last=True, **kwargs)
        self.seed, self.batches = seed, batches

    def __len__(self) -> int:
        return self.batches

    def _rest_of_epoch(self) -> Iterator[Any]:
        self.stream.seek(self.epoch)
        self.generator.manual_seed(number_of(self.seed, self.epoch, ORDER))
        yield from itertools.islice(super()._rest_of_epoch(), self.given, self.batches)
        if self.given < self.batches:
            raise InputError(
                f"the stream of training images ended after {self.given} of {self.batches} batches; a shard of it is "
                "damaged, or there are fewer shards than --devices times --workers, so lower --workers"
            )


def eval_loader(
    dataset: Any,
    batch_size: int,
    *,
    transform: Callable | None = None,
    policy: Policy = "raise",
    joint: bool = False,
    stack: bool = True,
    world: int = 1,
    rank: int = 0,
    **kwargs: Any,
) -> DataLoader:
    """Batches of `(images, labels, indices)` in the order of the data set, distributed over `world` processes.

    Args:
        dataset: Gives `(image, label)`.
        batch_size: Images in a batch.
        transform: Applied to each image.
        policy: What to do about an image that cannot be read, see `patnet.data.readable`.
        joint: Whether `transform` takes and gives `(image, label)`.
        stack: Whether to stack the images; otherwise a batch has a list of them.
        world: Number of processes.
        rank: Rank of this process.
        **kwargs: Options of `torch.utils.data.DataLoader`.
    """
    collate = partial(_collate_eval, stack=stack)
    if isinstance(dataset, IterableDataset):
        return Loader(_EvaluatedStream(dataset, transform), collate, batch_size=batch_size, **kwargs)
    batches = eval_batches(len(dataset), batch_size, world=world, rank=rank)
    return Loader(_Evaluated(dataset, transform, policy, joint), collate, batch_sampler=batches, **kwargs)
