"""Checkpoints that survive whatever ends a run, and the signals that stop one."""

import io
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from ..errors import InputError
from ..files import atomic_write
from ..models import UnsafeCheckpoint, read_tensors

__all__ = ["Checkpoints", "Interrupted", "SafeCheckpointIO", "newest_checkpoint"]


class Interrupted(Exception):
    """A run was stopped, after a checkpoint from which it can be resumed.

    Args:
        signal: The signal that stopped it.
    """

    def __init__(self, signal: signal.Signals) -> None:
        super().__init__(signal.name)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 ("try again later") after SIGTERM and SIGUSR1."""
        return 130 if self.signal == signal.SIGINT else os.EX_TEMPFAIL


class SafeCheckpointIO(TorchCheckpointIO):
    """Keeps the last checkpoint until the next one is on the disk, and then as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `path`, and rename an earlier one to `previous.ckpt`.

        Raises:
            InputError: If it cannot be written; the earlier checkpoint is then unchanged.
        """
        path = Path(path)
        content = io.BytesIO()  # torch's own writer does not say that a disk is full
        torch.save(checkpoint, content)
        with atomic_write(path, "the previous checkpoint is intact: free some space and resume with --resume") as new:
            with new.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, path.with_name("previous.ckpt"))
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def newest_checkpoint(last: Path, console: Console) -> Path | None:
    """The newest checkpoint of a run that is not damaged; None if there is none yet.

    Args:
        last: `checkpoints/last.ckpt` of the run; `previous.ckpt` next to it comes second.
        console: Where to report a damaged one.

    Raises:
        InputError: If all are damaged, or one would run code on loading.
    """
    damaged = []
    for file in (last, last.with_name("previous.ckpt")):
        if not file.is_file():
            continue
        try:
            read_tensors(file)
        except UnsafeCheckpoint:
            raise
        except InputError as error:
            damaged.append(str(error))
        else:
            for message in damaged:
                console.print(f"{message}; resuming from {file}", highlight=False)
            return file
    if damaged:
        raise InputError("; ".join(damaged))
    return None


@dataclass(eq=False)
class Checkpoints(Callback):
    """Saves a checkpoint at the end of each epoch, after so many minutes within one, and after a signal to stop.

    SIGTERM, SIGUSR1 (which SLURM sends before it takes a machine away) and Ctrl-C stop the run at the end of the
    current step, a second Ctrl-C at once. Lightning's ModelCheckpoint does not keep the previous file, nor does its
    handling of signals save within an epoch.

    Args:
        file: `checkpoints/last.ckpt` of the run.
        minutes: Time between two checkpoints within an epoch.
        saved: When the last one was written.
        received: The signal to stop that was received.
    """

    file: Path
    minutes: float
    saved: float = 0.0
    received: signal.Signals | None = None

    def _receive(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save how many batches make a step."""
        checkpoint["accumulate"] = trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count batches as this run makes them: on other devices, other numbers of batches make a step."""
        loop = checkpoint["loops"]["fit_loop"]
        loop["state_dict"].pop("combined_loader", None)  # `RunData` restores the position, in steps
        for counts in (loop["epoch_loop.batch_progress"]["total"], loop["epoch_loop.batch_progress"]["current"]):
            # The checkpoint is written before its own batch counts as completed.
            steps = counts["ready"] // checkpoint["accumulate"]
            more = steps * trainer.accumulate_grad_batches - counts["ready"]
            counts.update({name: count + more for name, count in counts.items()})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and receive the signals instead of Lightning, which restores the earlier handlers."""
        self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save between two steps if it is time.

        Raises:
            Interrupted: After saving, if a signal to stop was received.
        """
        # After its last step the epoch itself is saved: resumed from here, Lightning would leave its end out.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or batch_idx + 1 == trainer.num_training_batches:
            return
        if trainer.world_size > 1 and (batch_idx + 1) // trainer.accumulate_grad_batches % 10:
            return  # asking the first process costs time
        received = trainer.strategy.broadcast(self.received)
        if trainer.strategy.broadcast(received is not None or time.monotonic() - self.saved > 60 * self.minutes):
            self._save(trainer)
        if received is not None:
            raise Interrupted(received)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch.

        Raises:
            Interrupted: After saving, if a signal to stop was received.
        """
        self._save(trainer)
        received = trainer.strategy.broadcast(self.received)
        if received is not None:
            raise Interrupted(received)
