"""Processes that train together must see the same pictures."""

import hashlib
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..data import DataSplits
from ..errors import InputError

__all__ = ["SameData"]


class SameData(Callback):
    """Compares what the processes of a run train on: class names, number of pictures, and their names and labels.

    Args:
        splits: What this process trains on.
    """

    def __init__(self, splits: DataSplits) -> None:
        samples: Any = getattr(splits.train, "samples", [])
        digest = hashlib.sha256(repr(splits.class_names).encode())
        for path, label in samples:
            digest.update(f"{path.name} {label}\n".encode())
        self.seen = f"{len(splits.train)} training pictures of {len(splits.class_names)} classes", digest.hexdigest()

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
