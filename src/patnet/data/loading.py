"""Loaders whose every random number is determined by the seed, the epoch and the position in the epoch.

A run is therefore the same for any number of processes and loader workers, and after any interruption: which image
comes when, how it is cropped, and where a resumed run continues are computed from these three numbers.
"""

import atexit
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..errors import InputError
from .batches import Draw, TrainBatches, seed_all
from .unreadable import Unreadable

PADDING = -1  # index of an image that only fills up a process's share of an evaluation
AUGMENTATION = 102  # last part of a seed, so that the same numbers draw other random numbers elsewhere

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # stop a run
RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()  # the loader processes of this process

# What to do about an image that cannot be read: "replace" takes the next image that can be read (training), "report"
# a blank image whose label is `Unreadable` (evaluation, prediction), "raise" stops (--strict).
Policy = Literal["replace", "report", "raise"]

# `(first epoch, transform)` in ascending order; the last one that has begun applies.
Transforms = Sequence[tuple[int, Callable]]


def _read(
    dataset: Any, index: int, transform: Callable | None, policy: Policy, joint: bool
) -> tuple[Any, Any, list[str]]:
    """An image and its label, transformed, and one line for each image that could not be read.

    The data set raises `InputError` or `OSError` for such an image. The transform takes and gives an image, or with
    `joint` an image and its label.
    """
    faults: list[str] = []
    for offset in range(len(dataset) if policy == "replace" else 1):
        number = (index + offset) % len(dataset)
        try:
            image, label = dataset[number]
            if transform is not None:
                image, label = transform(image, label) if joint else (transform(image), label)
            return image, label, faults
        except (InputError, OSError) as error:
            if policy == "raise" and isinstance(error, InputError):
                raise
            faults.append(" ".join(str(error).split()) or f"image {number}: cannot be read")
    if policy == "report":
        blank: Any = Image.new(getattr(dataset, "mode", "RGB"), (32, 32))
        if transform is not None:
            blank = transform(blank, {})[0] if joint else transform(blank)
        return blank, Unreadable(faults[0]), faults
    raise InputError(faults[0] if policy == "raise" else f"no image of the data set can be read ({faults[0]})")


def transform_in(transforms: Transforms, epoch: int) -> Callable:
    """The transform of an epoch."""
    return next(transform for first, transform in reversed(transforms) if first <= epoch)


@dataclass(eq=False)
class SeededDataset(Dataset):
    """A data set whose augmentation is determined by the seed and the `Draw`.

    An item is the batch `(images, labels, faults)` of a list of draws, with a line in `faults` for each image that
    could not be read. Images and labels are tensors, or lists without `stack`.

    Args:
        dataset: Gives `(image, label)` for an index.
        seed: Random seed of the run.
        transforms: `(first epoch, transform)` in ascending order; the last one that has begun applies.
        strict: Raise for an image that cannot be read; otherwise the next one that can be read replaces it.
        joint: Whether a transform takes and gives `(image, label)`.
        stack: Whether to stack the images and labels.
    """

    dataset: Any
    seed: int
    transforms: Transforms
    strict: bool = field(default=False, kw_only=True)
    joint: bool = field(default=False, kw_only=True)
    stack: bool = field(default=True, kw_only=True)

    def __getitem__(self, draws: list[Draw]) -> tuple[Any, Any, list[str]]:
        images, labels, faults = [], [], []
        policy: Policy = "raise" if self.strict else "replace"
        for draw in draws:
            seed_all(self.seed, draw.epoch, draw.position, AUGMENTATION)
            transform = transform_in(self.transforms, draw.epoch)
            image, label, found = _read(self.dataset, draw.item, transform, policy, self.joint)
            images.append(image)
            labels.append(label)
            faults += found
        return (torch.stack(images), default_collate(labels), faults) if self.stack else (images, labels, faults)


@dataclass(eq=False)
class _Evaluated(Dataset):
    """Batches `(images, labels, indices)` of a list of indices; index `-1 - i` is image `i` as padding."""

    dataset: Any
    transform: Callable | None
    policy: Policy
    joint: bool
    stack: bool

    def __getitem__(self, indices: list[int]) -> tuple[Any, list[Any], list[int]]:
        places = [index if index >= 0 else -1 - index for index in indices]
        items = [_read(self.dataset, place, self.transform, self.policy, self.joint) for place in places]
        images, labels = [item[0] for item in items], [item[1] for item in items]
        return torch.stack(images) if self.stack else images, labels, [max(index, PADDING) for index in indices]


@dataclass(eq=False)
class _EvaluatedStream(IterableDataset):
    """Batches `(images, labels, numbers)` of a stream."""

    dataset: Any
    transform: Callable | None
    batch_size: int
    stack: bool

    def __iter__(self) -> Iterator[tuple[Any, list[Any], list[int]]]:
        items = enumerate(read_stream(self.dataset))
        while batch := list(itertools.islice(items, self.batch_size)):
            images = [self.transform(image) if self.transform else image for _, (image, _) in batch]
            numbers, labels = [number for number, _ in batch], [label for _, (_, label) in batch]
            yield torch.stack(images) if self.stack else images, labels, numbers


def read_stream(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """The items of a stream, which cannot continue after an image that cannot be read.

    Raises:
        InputError: Where the stream cannot be read.
    """
    items = iter(dataset)
    for number in itertools.count():
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:  # each of timm's readers raises its own types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"image {number} of the stream cannot be read ({reason})") from error
        yield item


@dataclass(eq=False)
class _Caught(Dataset):
    """Batches, or the `InputError` in place of one, since one raised in a worker loses its type and message."""

    dataset: Any

    def __getitem__(self, indices: Any) -> Any:
        try:
            return self.dataset[indices]
        except InputError as error:
            return error


class _CaughtStream(_Caught, IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except InputError as error:
            yield error


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start loader processes with `SIGNALS` blocked, until `_ignore_signals` has run in them.

    The signal mask is inherited through fork and exec. So it also protects the workers of a fork server that is started
    here, while they import torch; a fork server that the program started before has the mask that it had then.
    """
    multiprocessing.resource_tracker.ensure_running()  # which before Python 3.12 would unblock the signals
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    RUNNING.update(set(multiprocessing.active_children()) - others)
    atexit.unregister(_kill_running)
    atexit.register(_kill_running)  # last, so that it runs before the exit handlers of torch and multiprocessing


def _ignore_signals(worker: int) -> None:
    """The process that trains answers a signal to all processes, as clusters send it, and stops its workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _kill_running() -> None:
    """End the workers that are left when the program exits: multiprocessing would wait for them after a SIGTERM."""
    for process in RUNNING:
        process.kill()


class Loader(DataLoader):
    """A loader whose workers ignore `SIGNALS`, and which raises the `InputError` of a worker as it is.

    The items of `dataset` are batches; `kwargs` are options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Any, sampler: Any = None, **kwargs: Any) -> None:
        caught = _CaughtStream(dataset) if isinstance(dataset, IterableDataset) else _Caught(dataset)
        kwargs |= {"sampler": sampler, "batch_size": None, "collate_fn": _as_it_is}
        super().__init__(caught, worker_init_fn=_ignore_signals, **kwargs)

    def __iter__(self) -> Any:
        with starting_workers() if self.num_workers else nullcontext():
            batches: Any = super().__iter__()
        for batch in batches:
            if isinstance(batch, InputError):
                batches = None  # stops the workers
                raise batch
            yield batch


class TrainLoader(Loader):
    """The batches of a `SeededDataset`, epoch after epoch; continues where `load_state_dict` says."""

    sampler: TrainBatches
    epoch, given = 0, 0

    def __iter__(self) -> Any:
        if self.given == len(self):
            self.epoch, self.given = self.epoch + 1, 0
        self.sampler.seek(self.epoch, self.given)
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from what `state_dict` gave."""
        self.epoch, self.given = state_dict["epoch"], state_dict["given"]


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
) -> Loader:
    """Batches of `(images, labels, indices)` in the order of the data set, every `world`-th for each process.

    A process that would have one batch less repeats the first batch with the indices `PADDING`, since all processes
    must take as many steps.

    Args:
        dataset: Gives `(image, label)`.
        batch_size: Images in a batch.
        transform: Applied to each image.
        policy: What to do about an image that cannot be read, `"raise"` or `"report"`.
        joint: Whether `transform` takes and gives `(image, label)`.
        stack: Whether to stack the images; otherwise a batch has a list of them.
        world: Number of processes.
        rank: Rank of this process.
        **kwargs: Options of `torch.utils.data.DataLoader`.
    """
    if isinstance(dataset, IterableDataset):
        return Loader(_EvaluatedStream(dataset, transform, batch_size, stack), **kwargs)
    count = len(dataset)
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    padding = [[-1 - index for index in batch] for batch in batches[:1]]
    shares = (batches + padding * (-len(batches) % world))[rank::world]
    return Loader(_Evaluated(dataset, transform, policy, joint, stack), shares, **kwargs)
