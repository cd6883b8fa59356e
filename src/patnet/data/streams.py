"""Training on streams, as timm's readers of tar shards and of streamed data sets give them."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from ..errors import InputError
from .batches import ORDER, Batches, number_of, seed_all
from .loading import AUGMENTATION, Loader, TrainLoader, Transforms, read_stream, transform_in


@dataclass(eq=False)
class _SeededStream(IterableDataset):
    """A stream whose augmentation is determined by the seed, the epoch, the worker and the position in its share."""

    dataset: Any
    seed: int
    transforms: Transforms
    batches: Batches
    rank: int
    epoch: int = 0

    def seek(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Any, list[str]]]:
        # A reader would continue the shuffling of the previous epoch, so each epoch has a copy.
        place = {"dist_rank": self.rank, "dist_num_replicas": self.batches.devices}
        dataset = _with_reader(self.dataset, worker_seed=self.seed + self.epoch, **place)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self.epoch)
        transform, worker = transform_in(self.transforms, self.epoch), get_worker_info()
        stream = read_stream(dataset)
        images, labels = [], []
        for position in itertools.count():
            seed_all(self.seed, self.epoch, position, worker.id if worker else 0, AUGMENTATION)
            item = next(stream, None)
            if item is None:
                return
            images.append(transform(item[0]))
            labels.append(item[1])
            if len(images) == self.batches.batch_size:
                yield torch.stack(images), default_collate(labels), []
                images, labels = [], []


def _with_reader(dataset: Any, **attributes: Any) -> Any:
    """A copy of a stream of timm's, whose reader has other attributes; its constructor takes none of them."""
    if not hasattr(dataset, "reader"):
        return dataset
    dataset = copy.copy(dataset)
    dataset.reader = copy.copy(dataset.reader)
    for name, value in attributes.items():
        setattr(dataset.reader, name, value)
    return dataset


class StreamLoader(TrainLoader):
    """Batches `(images, labels, faults)` of a stream, of which an epoch takes the first `count` images.

    The readers distribute a stream over processes and shuffle it by the epoch. To resume within an epoch, the batches
    that were given are read again and skipped.

    Raises:
        InputError: If `count` is less than a global batch; while iterating, if the stream has less images.
    """

    def __init__(
        self,
        dataset: Any,
        count: int,
        batches: Batches,
        seed: int,
        transforms: Transforms,
        *,
        rank: int = 0,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        self.seed, self.length = seed, count // batches.global_size * batches.accumulate
        if not self.length:
            raise InputError(f"the {count} training images are less than one global batch of {batches.global_size}")
        dataset = _with_reader(dataset, batch_size=batches.batch_size)  # so that each worker gives complete batches
        if hasattr(dataset, "set_loader_cfg"):
            dataset.set_loader_cfg(num_workers=num_workers)
        self.stream = _SeededStream(dataset, seed, transforms, batches, rank)
        generator = torch.Generator()  # of the workers' seeds, by which the readers shuffle
        super().__init__(self.stream, num_workers=num_workers, generator=generator, **kwargs)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        if self.given == self.length:
            self.epoch, self.given = self.epoch + 1, 0
        self.stream.seek(self.epoch)
        self.generator.manual_seed(number_of(self.seed, self.epoch, ORDER))
        for batch in itertools.islice(Loader.__iter__(self), self.given, self.length):
            self.given += 1
            yield batch
        if self.given < self.length:
            raise InputError(
                f"the stream of training images ended after {self.given} of {self.length} batches; a shard of it is "
                "damaged, or there are fewer shards than --devices times --workers, so lower --workers"
            )
