"""Checkpoints that survive whatever stops a run: written aside, flushed, moved into place, the one before kept."""

import io
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..errors import InputError
from ..models.checkpoint import read_checkpoint

__all__ = ["Checkpoints", "SafeCheckpointIO", "Stopped", "newest_checkpoint"]


class Stopped(Exception):
    """The run was asked to stop by a signal, and can be resumed."""

    def __init__(self, wish: signal.Signals) -> None:
        super().__init__(wish.name)
        self.wish = wish


class SafeCheckpointIO(TorchCheckpointIO):
    """Keeps the last checkpoint whole until the next one is on the disk, and then as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `path`, and move what was there to `previous.ckpt` beside it.

        Raises:
            InputError: If it cannot be written; the earlier checkpoint is then as it was.
        """
        path = Path(path)
        aside = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()  # torch's own writer says little about a disk that is full
            torch.save(checkpoint, content)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
                aside = Path(file.name)
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(0o644)
            if path.exists():
                os.replace(path, path.with_name("previous.ckpt"))
            os.replace(aside, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if aside is not None:
                aside.unlink(missing_ok=True)
            raise InputError(
                f"{path}: the checkpoint cannot be written ({error.strerror or error}); the one before is whole, "
                "so make room and go on with --resume"
            ) from error


def newest_checkpoint(last: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a sentence for each damaged one.

    Args:
        last: `checkpoints/last.ckpt` of the run; `previous.ckpt` beside it comes next.

    Raises:
        InputError: If there are checkpoints, and none is whole; or if one would run code on loading.
    """
    for stale in last.parent.glob(".writing-*"):
        stale.unlink(missing_ok=True)
    said: list[str] = []
    for file in (last, last.with_name("previous.ckpt")):
        if not file.is_file():
            continue
        try:
            read_checkpoint(file)
        except InputError as error:
            if "run code" in str(error) and "damaged" not in str(error):
                raise
            said.append(str(error))
        else:
            return file, said
    if said:
        raise InputError("; ".join(said))
    return None, said


class Checkpoints(Callback):
    """Saves what a resumption needs, every so many minutes, at the end of each epoch, and when a signal asks to stop.

    SIGTERM, SIGUSR1 (which SLURM sends before it takes a machine away) and Ctrl-C are waited out to the end of the step
    under way; a second Ctrl-C is not.

    Args:
        file: `checkpoints/last.ckpt` of the run.
        minutes: Between two checkpoints within an epoch.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.file = file
        self.seconds = 60 * minutes
        self.saved = 0.0
        self.wish: signal.Signals | None = None

    def _note(self, number: int, frame: Any) -> None:
        if self.wish == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.wish = signal.Signals(number)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and listen in place of Lightning, which puts back the handlers that were there before."""
        self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                signal.signal(kind, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, between two steps.

        Raises:
            Stopped: If a signal asked for it, after saving.
        """
        # After its last step the epoch itself is saved: Lightning would leave its end out when it goes on from there.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or batch_idx + 1 == trainer.num_training_batches:
            return
        if trainer.world_size > 1 and (batch_idx + 1) // trainer.accumulate_grad_batches % 10:
            return  # to ask the first process costs time
        wish = trainer.strategy.broadcast(self.wish)
        if trainer.strategy.broadcast(wish is not None or time.monotonic() - self.saved > self.seconds):
            self._save(trainer)
        if wish is not None:
            raise Stopped(wish)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the epoch.

        Raises:
            Stopped: If a signal asked for it, after saving.
        """
        self._save(trainer)
        wish = trainer.strategy.broadcast(self.wish)
        if wish is not None:
            raise Stopped(wish)
