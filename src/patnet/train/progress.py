"""Progress of a run: a bar with the time left on a terminal, a line for each epoch everywhere."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["RunProgress", "progress_bar", "say_time"]


def say_time(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(console: Console) -> Progress:
    """A bar with counts, time elapsed and time left, which disappears when it is done."""
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
    """One bar over the steps of the whole run, and a line with the metrics of each epoch.

    Args:
        console: Where to.
        counts: Has `pictures`, `seconds` and `waited` of the epoch under way, for a run.
        validated: Says what the validation of an epoch came to, from what the module logged.
    """

    def __init__(
        self,
        console: Console,
        counts: Any = None,
        validated: Callable[[Mapping[str, float]], list[str]] = lambda measured: [],
    ) -> None:
        super().__init__()
        self.validated = validated
        self.console = console
        self.counts = counts
        self.bar = progress_bar(console)
        self.task: Any = None
        self.started = 0.0
        self.first_epoch = 0

    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self.console.quiet = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar, at the step where a resumed run goes on."""
        per_epoch = int(trainer.num_training_batches)
        self.started = time.monotonic()
        self.first_epoch = trainer.current_epoch
        self.bar.start()
        done = per_epoch * trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self.task = self.bar.add_task("starting", total=per_epoch * (trainer.max_epochs or 1), completed=done)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, with the batch's loss, the learning rate and the speed beside it."""
        if batch_idx % 5 == 0:
            parts = [
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                f"loss {outputs['loss'].item():.3f}",
                f"rate {trainer.optimizers[0].param_groups[0]['lr']:.1e}",
            ]
            self.bar.update(self.task, description="  ".join([*parts, *self._speed()]))
        self.bar.advance(self.task)

    def _speed(self) -> list[str]:
        """Pictures in a second, and the share of the time in which the device waited for them."""
        c = self.counts
        if c is None or not c.seconds:
            return []
        return [f"{c.pictures / c.seconds:.0f} images/s", f"waiting {100 * c.waited / c.seconds:.0f} %"]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the epoch is being validated."""
        if self.task is not None:
            self.bar.update(
                self.task, description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  validating"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the epoch's line."""
        m = {k: float(v) for k, v in trainer.callback_metrics.items()}
        done = trainer.current_epoch + 1
        left = (time.monotonic() - self.started) / (done - self.first_epoch) * ((trainer.max_epochs or done) - done)
        parts = [f"epoch {done:>3}/{trainer.max_epochs}", f"train loss {m['train_loss']:.3f}"]
        parts += [*self.validated(m), *self._speed()]
        parts.append(f"{say_time(left)} left" if left else f"{say_time(time.monotonic() - self.started)} in all")
        self.console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar over the batches to predict."""
        self.bar.start()
        batches = sum(trainer.num_predict_batches)  # infinite where a stream does not say
        self.task = self.bar.add_task("predicting", total=batches if math.isfinite(batches) else None)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar."""
        self.bar.advance(self.task)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar, after an interruption too."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before anything is said about the exception."""
        self.bar.stop()
