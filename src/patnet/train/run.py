"""A run: its directory, its checkpoint files, and the trainer that writes them."""

import io
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from filelock import FileLock, Timeout
from lightning.fabric.plugins.environments import ClusterEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from ..errors import InputError
from ..files import atomic_write, write_text
from ..models import UnsafeCheckpoint, read_tensors
from .config import RunConfig, TrainConfig

Config = TypeVar("Config", bound=RunConfig)

# Lightning's remarks on the machine and on what is so on purpose.
REMARKS = (
    r".*does not have many workers.*",
    r".*'pin_memory' argument is set as true but no accelerator.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*LeafSpec.*",
    r".*Total length of `list` across ranks is zero.*",  # without validation
    r".*have no `val_dataloader`.*",
    r".*number of training batches .* is smaller than the logging interval.*",
    r".*module.* in eval mode at the start of training.*",
    r".*It is recommended to use `self.log\(.*, sync_dist=True\)`.*",  # torchmetrics has synchronised already
)


def is_main_process() -> bool:
    """Whether this is the first process of a run, or the only one."""
    return getattr(rank_zero_only, "rank", 0) == 0


def make_trainer(
    accelerator: str, devices: str, *, strategy: str = "auto", precision: Any = "32-true", **kwargs: Any
) -> L.Trainer:
    """A Lightning trainer without remarks on the machine, in the processes of torchrun where it started them.

    With a `ClusterEnvironment` among the plugins it is in that one, such as that of a single process.

    Args:
        accelerator: Device type, as Lightning names it.
        devices: Number of devices, or a list of them.
        strategy: Lightning's name of a strategy, or fsdp.
        precision: Precision, as Lightning names it.
        **kwargs: Further arguments of `lightning.Trainer`.

    Raises:
        InputError: If there is no such device, strategy or precision.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in REMARKS:
        warnings.filterwarnings("ignore", message=message)
    given = any(isinstance(plugin, ClusterEnvironment) for plugin in kwargs.get("plugins", []))
    if TorchElasticEnvironment.detect() and not given:
        devices = os.environ["LOCAL_WORLD_SIZE"]
        kwargs["num_nodes"] = int(os.environ["WORLD_SIZE"]) // int(devices)
    # The checkpoints are unsharded, so that any number of processes reads them.
    kwargs["strategy"] = ModelParallelStrategy(save_distributed_checkpoint=False) if strategy == "fsdp" else strategy
    off = ("enable_model_summary", "enable_checkpointing", "enable_progress_bar", "use_distributed_sampler")
    kwargs = {"precision": precision, "logger": False, "num_sanity_val_steps": 0, **dict.fromkeys(off, False), **kwargs}
    try:
        return L.Trainer(accelerator=accelerator, devices=int(devices) if devices.isdigit() else devices, **kwargs)
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"--accelerator {accelerator} --devices {devices} --strategy {strategy} --precision {precision}: "
            f"not available here ({reason}); try --accelerator cpu --strategy auto --precision 32-true"
        ) from error


@contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, after which Lightning exits and leaves Ctrl-C ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stopped


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


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
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
        self._in_use = f"{self.path}: another process is training this run; wait for its end, or stop it first"

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Check that a run with these options can start, or resume, here.

        Raises:
            InputError: If the directory is in use, or the run in it has other options.
        """
        if resume:
            if is_main_process() and self.is_running():
                raise InputError(self._in_use)
            if changed := self.read_config(type(config)).differences(config):
                raise InputError(f"{self.path}: cannot be resumed with other options ({'; '.join(changed)})")
        elif is_main_process() and self.config.exists():
            raise InputError(f"{self.path}: holds a run already; resume it with --resume, or give another --out")
        elif is_main_process() and self.path.is_dir() and any(self.path.iterdir()):
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

        Raises:
            InputError: If the directory holds no run, or one of another command.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path}: holds no run (no config.yaml); {config_class.COMMAND} creates one")
        return config_class.read(self.config)

    def newest_checkpoint(self, console: Console) -> Path | None:
        """The newest checkpoint that is not damaged; None if there is none yet. Damaged ones are reported.

        Raises:
            InputError: If all are damaged, or one would run code on loading.
        """
        damaged = []
        for file in (self.checkpoint, self.checkpoint.with_name("previous.ckpt")):
            if not file.is_file():
                continue
            try:
                read_tensors(file)
            except UnsafeCheckpoint:
                raise
            except InputError as error:
                damaged.append(str(error))
                continue
            for message in damaged:
                console.print(f"{message}; resuming from {file}", highlight=False)
            return file
        if damaged:
            raise InputError("; ".join(damaged))
        return None

    def wandb_id(self) -> str | None:
        """The identifier of the run at Weights & Biases, where a resumed run continues; None if it never logged."""
        logged = sorted((self.path / "wandb").glob("*run-*-*"))  # such as offline-run-20261123_145835-a5s929yh
        return logged[0].name.rsplit("-", 1)[-1] if logged else None

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
            raise InputError(self._in_use) from error
        except OSError:
            pass  # a file system without locks
        for unfinished in self.path.rglob(".writing-*"):  # of a process that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        try:
            yield
        finally:
            self._lock.unlink(missing_ok=True)
            lock.release()
