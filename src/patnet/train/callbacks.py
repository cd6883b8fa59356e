"""Callbacks of a run: metrics, curves and weights of each epoch, and the list of unreadable images."""

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from ..errors import InputError
from ..files import atomic_write, save_figure
from .figures import draw_curves
from .progress import format_duration
from .run import RunDirectory

__all__ = ["Recorder", "Unreadable"]


class Recorder(Callback):
    """Records each epoch: a line in `metrics.csv` and on the console, the curves, and the weights in `best/`, `last/`.

    Lightning's CSVLogger deletes the lines of the run that is resumed.

    Args:
        run: Directory of the run.
        console: Where to print the lines.

    Attributes:
        history: The lines of metrics so far.
    """

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.run, self.console = run, console
        self.history: list[dict[str, Any]] = []
        # Of the current epoch: seconds in which the device waited for images, seconds in which it computed, images.
        self.waited, self.computed, self.images = 0.0, 0.0, 0
        self.clock = time.monotonic()
        self.drawn = self.drawing = 0.0  # when the curves were drawn last, and how long that took

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far and the current one."""
        epoch = {"waited": self.waited, "computed": self.computed, "images": self.images}
        return {"history": self.history, "epoch": epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the epochs of the run that is resumed."""
        self.history = list(state_dict["history"])
        vars(self).update(state_dict["epoch"])
        self.clock = time.monotonic()

    @property
    def best(self) -> dict[str, Any]:
        """The line of the epoch whose weights are in `best/`."""
        return next(row for row in reversed(self.history) if row["best"])

    def speed(self) -> str:
        """Images per second, and the share of the time in which the device waited for them."""
        seconds = self.waited + self.computed
        return f"{self.images / seconds:.0f} images/s  waiting {100 * self.waited / seconds:.0f} %" if seconds else ""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the counters."""
        self.waited, self.computed, self.images = 0.0, 0.0, 0
        self.clock = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the previous batch as waiting for images."""
        now = time.monotonic()
        self.waited, self.clock = self.waited + now - self.clock, now

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images of the batch."""
        now = time.monotonic()
        self.computed, self.clock = self.computed + now - self.clock, now
        self.images += len(batch[1]) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Record the epoch."""
        self.computed += time.monotonic() - self.clock  # and validated
        seconds = self.waited + self.computed
        logged = sorted(trainer.callback_metrics.items(), key=lambda item: not item[0].startswith("train_"))
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            **{name: float(value) for name, value in logged},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(seconds, 2),
            "images_per_s": round(self.images / seconds, 1),
            "waiting": round(self.waited / seconds, 4),
            "skipped": pl_module.skipped["total"],
        }
        result = pl_module.monitor(row)
        row["best"] = result is None or all(result > pl_module.monitor(earlier) for earlier in self.history)
        self.history.append(row)
        model = pl_module.unsharded_model()
        if trainer.is_global_zero:
            self._write(pl_module, model, row, final=row["epoch"] == trainer.max_epochs)
            self._print(pl_module, row, trainer.max_epochs or 0)

    def _write(self, module: Any, model: Any, row: dict[str, Any], *, final: bool) -> None:
        with atomic_write(self.run.metrics) as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)
        start = time.monotonic()
        if final or start - self.drawn > 20 * self.drawing:  # not so often that the run would wait for it
            save_figure(draw_curves(self.history, module.curves, module.title), self.run.curves)
            self.drawn = time.monotonic()
            self.drawing = self.drawn - start
        for directory in [self.run.last, self.run.best] if row["best"] else [self.run.last]:
            module.save(model, directory)

    def _print(self, module: Any, row: dict[str, Any], epochs: int) -> None:
        spent = sum(earlier["seconds"] for earlier in self.history)
        left = spent / row["epoch"] * (epochs - row["epoch"])
        time_ = f"{format_duration(left)} left" if left else f"{format_duration(spent)} in total"
        results = [f"epoch {row['epoch']:>3}/{epochs}", f"train loss {row['train_loss']:.3f}", module.summary(row)]
        line = "  ".join(part for part in (*results, self.speed(), time_) if part)
        self.console.print(line, highlight=False, soft_wrap=True)


@dataclass(eq=False)
class Unreadable(Callback):
    """Lists the images that could not be read and were replaced, and stops the run where they are too many.

    Args:
        file: The list, a line for each image.
        allowed: Share of the images of an epoch that may be unreadable.
        faults: The lines so far.
    """

    file: Path
    allowed: float
    faults: dict[str, None] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The lines so far."""
        return {"faults": list(self.faults)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the list of the run that is resumed."""
        self.faults = dict.fromkeys(state_dict["faults"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """List the unreadable images of the batch.

        Raises:
            InputError: If they are more than allowed.
        """
        new = [fault for fault in dict.fromkeys(batch[2]) if fault not in self.faults]
        if not new:
            return
        self.faults |= dict.fromkeys(new)
        with self.file.open("a", encoding="utf-8") as file:  # each process appends its own
            file.write("".join(f"{fault}\n" for fault in new))
        images = int(trainer.num_training_batches) * len(batch[1])
        if len(self.faults) > self.allowed * images:
            raise InputError(
                f"{new[0]}; {len(self.faults)} of {images} images cannot be read, more than --max-unreadable "
                f"{self.allowed} allows; {self.file} lists them: repair or remove them, or raise the limit"
            )
