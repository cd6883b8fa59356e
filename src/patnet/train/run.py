"""A run folder: what training leaves in it, and how it is found again."""

import csv
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

from ..errors import InputError
from ..files import write_text
from .config import RunConfig, TrainConfig
from .figures import save_figure

__all__ = ["RunFolder", "RunLock", "RunRecorder", "write_text"]

Config = TypeVar("Config", bound=RunConfig)


class RunFolder:
    """The files of a run.

    `config.yaml` holds the options as run, `metrics.csv` a line for each epoch, `curves.png` the same drawn,
    `tensorboard/` the same for TensorBoard, `best/` and `last/` weights that `timm.create_model("local-dir:...")`
    loads, `checkpoints/last.ckpt` what a resumption needs.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.csv"
        self.curves = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.unreadable = self.path / "unreadable.txt"
        self.running = self.path / ".running"

    def start(self, config: RunConfig) -> None:
        """Make the folder for a new run.

        Raises:
            InputError: If it holds something already, or cannot be written.
        """
        if self.config.exists():
            raise InputError(f"{self.path}: holds another run; --resume goes on with it, another --out starts anew")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise InputError(f"{self.path}: exists and is not empty; give another --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.config, config.to_yaml())
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); give another --out"
            ) from error

    def read_config(self, kind: type[Config] = TrainConfig) -> Config:  # type: ignore[assignment]
        """The options of the run in this folder.

        Args:
            kind: Of the run.

        Raises:
            InputError: If it holds no run, or one of another kind.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path}: holds no run (no config.yaml); {kind.COMMAND} makes one")
        return kind.read(self.config)

    def wandb_id(self) -> str | None:
        """The run's name at Weights & Biases, which goes on there as it is resumed; None if it never logged there."""
        logged = sorted((self.path / "wandb").glob("*run-*-*"))  # such as offline-run-20261123_145835-a5s929yh
        return logged[0].name.rsplit("-", 1)[-1] if logged else None

    def is_held(self) -> bool | None:
        """Whether a process trains this run; None where the file system cannot say, for it knows no locks."""
        try:
            with self.running.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return None
        return False


class RunLock(Callback):
    """Holds the run while it is trained, so that no second process goes on with it.

    The lock is on the file `.running`, and the system takes it back however the process dies.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.file: TextIO | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the lock, in the first process.

        Raises:
            InputError: If another process holds it.
        """
        if not trainer.is_global_zero:
            return
        patience = time.monotonic() + 1  # `is_held` takes the lock for a moment too
        while self.file is None:
            file = self.folder.running.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                if time.monotonic() > patience:
                    raise InputError(
                        f"{self.folder.path}: {holder} is training this run; wait for its end, or stop it first"
                    ) from error
                time.sleep(0.05)
                continue
            except OSError:
                pass  # without locks there, the age of the last change has to tell
            try:
                kept = os.path.samestat(os.fstat(file.fileno()), self.folder.running.stat())
            except FileNotFoundError:
                kept = False
            if kept:  # not the file that another process took away as it ended
                self.file = file
            else:
                file.close()
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self.file.flush()
        # A loader process that outlives this one for a moment would keep the lock.
        os.register_at_fork(after_in_child=self._close)

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the lock back."""
        if self.file is not None:
            self.folder.running.unlink(missing_ok=True)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the lock back after an interruption too."""
        self.teardown(trainer, pl_module, "fit")


class RunRecorder(Callback):
    """Writes the metrics, the curves and the weights of each epoch into the run folder.

    Args:
        folder: Of the run.
        measured: Names of what the module logs at an epoch's end, as far as it does.
        merit: What is greater for a better epoch, from its line; None without validation, and then the newest epoch
            counts as the best.
        draw: Draws the curves of the epochs so far.
        save: Writes a network into a directory.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        measured: Sequence[str],
        merit: Callable[[dict[str, Any]], Any],
        draw: Callable[[list[dict[str, Any]]], Figure],
        save: Callable[[Any, Path], Any],
    ) -> None:
        self.folder = folder
        self.measured, self.merit, self.draw, self.save = measured, merit, draw, save
        self.history: list[dict[str, Any]] = []
        # Of the epoch under way: seconds in all, seconds in which the device waited for pictures, pictures.
        self.seconds, self.waited, self.pictures = 0.0, 0.0, 0
        self.clock = 0.0
        # When the curves were drawn last, and how long that took.
        self.drawn, self.drawing = 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, kept in the checkpoint so that a resumed run has them too."""
        return {
            "history": self.history,
            "epoch": {"seconds": self.seconds, "waited": self.waited, "pictures": self.pictures},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epochs of the run that is resumed."""
        self.history = list(state_dict["history"])
        vars(self).update(state_dict["epoch"])

    def best_epoch(self) -> dict[str, Any]:
        """The line of the epoch whose weights are in `best/`."""
        return next(row for row in reversed(self.history) if row["best"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.clock = time.monotonic()

    def _lap(self) -> float:
        now = time.monotonic()
        lap, self.clock = now - self.clock, now
        self.seconds += lap
        return lap

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the epoch's counters to zero."""
        self.seconds, self.waited, self.pictures = 0.0, 0.0, 0
        self.clock = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the time since the batch before as waiting for pictures."""
        self.waited += self._lap()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's pictures."""
        self._lap()
        self.pictures += len(batch[1]) * trainer.world_size

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the epoch."""
        found = {n: float(trainer.callback_metrics[n]) for n in self.measured if n in trainer.callback_metrics}
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, **found}
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._lap()
        row["seconds"] = round(self.seconds, 2)
        row["images_per_s"] = round(self.pictures / self.seconds, 1)
        row["waiting"] = round(self.waited / self.seconds, 4)
        skipped: Any = pl_module.skipped
        row["skipped"] = skipped["all"]

        merit = self.merit(row)
        row["best"] = merit is None or all(merit > self.merit(earlier) for earlier in self.history)
        self.history.append(row)
        module: Any = pl_module
        network = module.to_keep()
        if not trainer.is_global_zero:
            return
        self._write(network, best=row["best"], final=row["epoch"] == trainer.max_epochs)

    def _write(self, model: Any, *, best: bool, final: bool) -> None:
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder.path, prefix=".writing-", delete=False, encoding="utf-8", newline=""
        ) as aside:
            writer = csv.DictWriter(aside, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)
        Path(aside.name).chmod(0o644)
        os.replace(aside.name, self.folder.metrics)
        start = time.monotonic()
        if final or start - self.drawn > 20 * self.drawing:  # not so often that the run would wait for it
            save_figure(self.draw(self.history), self.folder.curves)
            self.drawn = time.monotonic()
            self.drawing = self.drawn - start
        for directory in [self.folder.last, self.folder.best] if best else [self.folder.last]:
            self.save(model, directory)
