"""Loader processes: they ignore the signals that stop a run, and their `InputError` reaches the process that trains."""

import atexit
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()  # the loader processes of this process


class _Caught(Dataset):
    """A data set that returns an `InputError` as the item, since one raised in a worker loses its type and message."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


class _CaughtStream(IterableDataset):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except InputError as error:
            yield from itertools.repeat(error)  # until the batch is full, however large


def _collate_caught(collate: Callable, items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, InputError)), None) or collate(items)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Start processes with `SIGNALS` blocked, until `_ignore_signals` has run in them.

    The signal mask is inherited through fork and exec. So it also protects the workers of a fork server that is started
    here, while they import torch; a fork server that the program started before has the mask that it had then.
    """
    multiprocessing.resource_tracker.ensure_running()  # which before Python 3.12 would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    """A loader whose workers ignore `SIGNALS`, and which raises the `InputError` of a worker as it is."""

    def __init__(self, dataset: Any, collate: Callable, **kwargs: Any) -> None:
        caught = _CaughtStream(dataset) if isinstance(dataset, IterableDataset) else _Caught(dataset)
        super().__init__(caught, collate_fn=partial(_collate_caught, collate), worker_init_fn=_ignore_signals, **kwargs)

    def _start(self) -> Iterator[Any]:
        if not self.num_workers:
            return super().__iter__()
        before = set(multiprocessing.active_children())
        with blocked_signals():
            batches = super().__iter__()
        RUNNING.update(set(multiprocessing.active_children()) - before)
        atexit.unregister(_kill_running)
        atexit.register(_kill_running)  # last, so that it runs before the exit handlers of torch and multiprocessing
        return batches

    def __iter__(self) -> Any:
        batches: Any = self._start()
        for batch in batches:
            if isinstance(batch, InputError):
                batches = None  # stops the workers
                raise batch
            yield batch
