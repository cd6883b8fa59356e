"""Progress of a run: a progress bar on a terminal, and durations and sizes in words."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["RunProgress", "format_bytes", "format_duration", "progress_bar"]


def format_duration(seconds: float) -> str:
    """A duration in the unit that suits it: `"42 s"`, `"7 min"`, `"1.5 h"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_bytes(size: float) -> str:
    """Bytes in GiB, or in MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def progress_bar(console: Console) -> Progress:
    """A progress bar with counts, time elapsed and time left, which disappears at the end; only on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class RunProgress(ProgressBar):
    """One progress bar over all steps of a run.

    Lightning's RichProgressBar counts each epoch by itself, so it cannot say how long the run still takes.

    Args:
        console: Where to show it; a quiet one in all processes but the first.
        speed: Gives the speed so far in words.
    """

    def __init__(self, console: Console, speed: Callable[[], str] = str) -> None:
        super().__init__()
        self.bar, self.speed = progress_bar(console), speed
        self.task: Any = None

    def disable(self) -> None:
        """Called by Lightning in all processes but the first, whose console is quiet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar, at the step where a resumed run continues."""
        per_epoch = int(trainer.num_training_batches)
        done = per_epoch * trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self.bar.start()
        self.task = self.bar.add_task("starting", total=per_epoch * (trainer.max_epochs or 1), completed=done)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance the bar, with the batch's loss and the learning rate."""
        if batch_idx % 5 == 0 and not self.bar.disable:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            loss = outputs["loss"].item()
            self.bar.update(self.task, description=f"{epoch}  loss {loss:.3f}  lr {rate:.1e}  {self.speed()}")
        self.bar.advance(self.task)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before an error message is printed."""
        self.bar.stop()
