"""Processes that train together must see the same pictures."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..errors import InputError

__all__ = ["SameData"]


class SameData(Callback):
    """Compares what the processes of a run train on: class names, and the pictures with what belongs to each.

    Args:
        class_names: As this process sees them.
        pictures: What tells them apart, such as names with labels; empty for a stream.
        count: How many pictures there are.
    """

    def __init__(self, class_names: Sequence[str], pictures: Iterable[Any], count: int) -> None:
        digest = hashlib.sha256(repr(list(class_names)).encode())
        for picture in pictures:
            digest.update(f"{picture}\n".encode())
        self.seen = f"{count} training pictures of {len(class_names)} classes", digest.hexdigest()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare.

        Raises:
            InputError: In all processes, if one sees something else than the first.
        """
        first = trainer.strategy.broadcast(self.seen)
        if not trainer.strategy.reduce_boolean_decision(first == self.seen, all=True):
            raise InputError(
                f"the processes see different data: process {trainer.global_rank} has {self.seen[0]}, not the same as "
                "another; give all machines the same files under --data"
            )
