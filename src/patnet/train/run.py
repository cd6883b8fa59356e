"""A run directory: what training writes into it, and how it is found again."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import write_text
from .config import RunConfig, TrainConfig
from .distributed import is_main_process

__all__ = ["RunDirectory"]

Config = TypeVar("Config", bound=RunConfig)


class RunDirectory:
    """The files of a run.

    Args:
        path: The directory.

    Attributes:
        config: `config.yaml`, the options.
        metrics: `metrics.csv`, a line for each epoch.
        curves: `curves.png`, the metrics drawn.
        tensorboard: `tensorboard/`, the metrics for TensorBoard.
        best: `best/`, the weights of the best epoch, which `timm.create_model("local-dir:...")` loads.
        last: `last/`, the weights of the last epoch.
        checkpoint: `checkpoints/last.ckpt`, from which a run is resumed.
        unreadable: `unreadable.txt`, the images that could not be read.
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
        self._lock = self.path / ".lock"

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with these options can start, or resume, here.

        Raises:
            InputError: If the directory is in use, or the run in it has other options.
        """
        if resume:
            if is_main_process() and self.is_running():
                raise self._in_use()
            if changed := self.read_config(type(config)).differences(config):
                raise InputError(f"{self.path}: cannot be resumed with other options ({'; '.join(changed)})")
            return
        if is_main_process() and self.config.exists():
            raise InputError(f"{self.path}: holds a run already; resume it with --resume, or give another --out")
        if is_main_process() and self.path.is_dir() and any(self.path.iterdir()):
            raise InputError(f"{self.path}: exists and is not empty; give another --out")

    def create(self, config: RunConfig) -> None:
        """Create the directory of a new run.

        Raises:
            InputError: If the directory is in use or cannot be written.
        """
        self.check(config, resume=False)
        write_text(self.config, config.to_yaml())

    def read_config(self, config_class: type[Config] = TrainConfig) -> Config:  # type: ignore[assignment]
        """The options of the run in this directory.

        Args:
            config_class: Class of the options.

        Raises:
            InputError: If the directory holds no run, or one of another command.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path}: holds no run (no config.yaml); {config_class.COMMAND} creates one")
        return config_class.read(self.config)

    def wandb_id(self) -> str | None:
        """The identifier of the run at Weights & Biases, where a resumed run continues; None if it never logged."""
        logged = sorted((self.path / "wandb").glob("*run-*-*"))  # such as offline-run-20261123_145835-a5s929yh
        return logged[0].name.rsplit("-", 1)[-1] if logged else None

    def _in_use(self) -> InputError:
        return InputError(f"{self.path}: another process is training this run; wait for its end, or stop it first")

    def is_running(self) -> bool | None:
        """Whether a process trains this run; None if that cannot be determined, for example without permission."""
        if not self._lock.exists():
            return False
        try:
            with FileLock(self._lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Reserve the run for this process; the system releases the lock however the process ends.

        Raises:
            InputError: If another process has reserved it.
        """
        if not is_main_process():
            yield
            return
        lock = FileLock(self._lock, timeout=1)  # `is_running` takes it for a moment too
        try:
            lock.acquire()
        except Timeout as error:
            raise self._in_use() from error
        except OSError:
            pass  # a file system without locks
        for unfinished in self.path.rglob(".writing-*"):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            yield
        finally:
            self._lock.unlink(missing_ok=True)
            lock.release()
