"""Callbacks of a run: what it reports of its epochs, the list of unreadable images, and checkpoints."""

import csv
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..data import Unreadable, check_unreadable, describe_unreadable
from ..files import atomic_write, save_figure
from .figures import draw_curves
from .run import RunDirectory


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
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    description = TextColumn("{task.description}")
    return Progress(description, *columns, console=console, transient=True, disable=not console.is_terminal)


def _learning_rate(trainer: L.Trainer) -> float:
    """The learning rate, of the last layers where it differs by layer."""
    return max(group["lr"] for group in trainer.optimizers[0].param_groups)


class Recorder(Callback):
    """Shows the progress of a run, and records each epoch.

    On a terminal one progress bar covers all steps; Lightning's counts each epoch by itself, so it cannot say how long
    the run still takes. An epoch is a line on the console and in `metrics.csv`, the curves, and the weights in `last/`
    and `best/`; Lightning's CSVLogger deletes the lines of the run that is resumed.

    Args:
        run: Directory of the run.
        console: Where to print; a quiet one in all processes but the first.

    Attributes:
        history: The lines of metrics so far.
    """

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.run, self.console, self.bar = run, console, progress_bar(console)
        self.task: Any = None
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the progress bar, at the step where a resumed run continues."""
        per_epoch = int(trainer.num_training_batches)
        done = per_epoch * trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self.bar.start()
        self.task = self.bar.add_task("starting", total=per_epoch * (trainer.max_epochs or 1), completed=done)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the counters."""
        self.waited, self.computed, self.images = 0.0, 0.0, 0
        self.clock = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the time since the previous batch as waiting for images."""
        now = time.monotonic()
        self.waited, self.clock = self.waited + now - self.clock, now

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the images of the batch, and advance the progress bar."""
        now = time.monotonic()
        self.computed, self.clock = self.computed + now - self.clock, now
        self.images += len(batch[1]) * trainer.world_size
        if batch_idx % 5 == 0 and not self.bar.disable:
            rate = _learning_rate(trainer)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            loss = outputs["loss"].item() * trainer.accumulate_grad_batches  # by which Lightning divides it
            self.bar.update(self.task, description=f"{epoch}  loss {loss:.3f}  lr {rate:.1e}  {self.speed()}")
        self.bar.advance(self.task)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Record the epoch."""
        self.computed += time.monotonic() - self.clock  # and validated
        seconds = self.waited + self.computed
        logged = sorted(trainer.callback_metrics.items(), key=lambda item: not item[0].startswith("train_"))
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            **{name: float(value) for name, value in logged},
            "lr": _learning_rate(trainer),
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
            self._write(pl_module, model, row, final=trainer.should_stop or row["epoch"] == trainer.max_epochs)
            self._print(pl_module, row, trainer.max_epochs or 0)

    def _write(self, module: Any, model: Any, row: dict[str, Any], *, final: bool) -> None:
        start = time.monotonic()
        if final or start - self.drawn > 20 * self.drawing:  # not so often that the run would wait for it
            save_figure(draw_curves(self.history, module.curves, module.title), self.run.curves)
            self.drawn = time.monotonic()
            self.drawing = self.drawn - start
        for directory in [self.run.last, self.run.best] if row["best"] else [self.run.last]:
            module.save(model, directory)
        with atomic_write(self.run.metrics) as new, new.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)

    def _print(self, module: Any, row: dict[str, Any], epochs: int) -> None:
        spent = sum(earlier["seconds"] for earlier in self.history)
        left = spent / row["epoch"] * (epochs - row["epoch"])
        time_ = f"{format_duration(left)} left" if left else f"{format_duration(spent)} in total"
        results = [f"epoch {row['epoch']:>3}/{epochs}", f"train loss {row['train_loss']:.3f}", module.summary(row)]
        line = "  ".join(part for part in (*results, self.speed(), time_) if part)
        self.console.print(line, highlight=False, soft_wrap=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the progress bar."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the progress bar before an error message is printed."""
        self.bar.stop()


class EarlyStopping(L.pytorch.callbacks.EarlyStopping):
    """Lightning's, which counts an epoch before it is saved, so that a resumed run has the count or stays stopped."""

    def __init__(self, watched: tuple[str, str], patience: int) -> None:
        monitor, mode = watched
        options: dict[str, Any] = {"check_on_train_epoch_end": False, "log_rank_zero_only": True}
        super().__init__(monitor, mode=mode, patience=patience, **options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train no further where the run had stopped."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


@dataclass(eq=False)
class UnreadableImages(Callback):
    """Lists the training and validation images that could not be read, and stops the run where they are too many.

    Args:
        file: The list, a line for each image.
        allowed: Share of the images of an epoch, with those of its validation, that may be unreadable.
        console: Where they are reported, after the epoch that read them first.
        reasons: The lines so far.
        reported: Number of those that were reported.
    """

    file: Path
    allowed: float
    console: Console
    reasons: list[str] = field(default_factory=list)
    reported: int = 0

    def state_dict(self) -> dict[str, Any]:
        """The lines so far."""
        return {"reasons": self.reasons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the list of the run that is resumed."""
        self.reasons = list(state_dict["reasons"])
        self.reported = len(self.reasons)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """List the images of the batch that were replaced.

        Raises:
            InputError: If more are unreadable than allowed.
        """
        self._add(trainer, batch[2])

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """List the images that the validation left out.

        Raises:
            InputError: If more are unreadable than allowed.
        """
        self._add(trainer, [label for label in batch[1] if isinstance(label, Unreadable)])

    def _add(self, trainer: Any, reasons: Sequence[str]) -> None:
        new = [reason for reason in dict.fromkeys(map(str, reasons)) if reason not in self.reasons]
        if not new:
            return
        self.reasons += new
        with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:  # each process appends its own
            file.write("".join(f"{reason}\n" for reason in new))
        data = trainer.datamodule
        images = data.train_size + data.val_size  # each process meets all images, in epochs of another order
        hint = f"{self.file} lists them: repair or remove them, or raise the limit"
        check_unreadable(len(self.reasons), images, self.allowed, self.reasons[0], hint)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the images of the epoch."""
        if new := self.reasons[self.reported :]:
            line = f"Warning: {describe_unreadable(new)} ({self.file})"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.reported = len(self.reasons)


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
