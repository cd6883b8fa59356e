"""The folder of an experiment, which any number of processes may share."""

import contextlib
import errno
import fcntl
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from ..train.run import RunFolder
from ..train.runs import RunSummary, summarise_run
from .settings import ExperimentConfig

__all__ = ["ExperimentFolder", "claimed"]


@contextlib.contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on a file; whether that worked, for another process may hold it.

    The lock ends with the process, however that ends. A process is never refused its own lock, so each file is claimed
    in one place only.

    Args:
        file: Made if it is not there.
        wait: Until the other process is done.

    Raises:
        InputError: If the file system has no locks.
    """
    with file.open("a") as held:
        got = True
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"{file}: its file system has no locks ({error.strerror}), by which processes share the work; "
                    "give an --out on another"
                ) from error
            got = False
        yield got


class ExperimentFolder:
    """The files of an experiment.

    `experiment.yaml` holds the options, `costs.json` what was measured of the networks, `runs/CONFIGURATION/seed-N/`
    the runs, `results.json` all numbers, `report.md` and `report.png` what they say.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "experiment.yaml"
        self.costs = self.path / "costs.json"
        self.runs = self.path / "runs"
        self.results = self.path / "results.json"
        self.report = self.path / "report.md"
        self.picture = self.path / "report.png"

    def shown(self) -> list[Path]:
        """The report, its picture where there is more than one configuration to draw, and the numbers."""
        return [file for file in (self.report, self.picture, self.results) if file != self.picture or file.exists()]

    def run(self, configuration: str, seed: int) -> Path:
        """The run folder of a configuration and seed."""
        return self.runs / configuration / f"seed-{seed}"

    @contextlib.contextmanager
    def alone(self, part: str) -> Iterator[None]:
        """Wait until no other process is in the same part of the work."""
        with claimed(self.path / f".{part}", wait=True):
            yield

    def start(self, config: ExperimentConfig) -> None:
        """Make the folder, or join the experiment in it.

        Options may be changed until the first run has begun.

        Raises:
            InputError: If it holds something else or an experiment with other options, or cannot be written.
        """
        try:
            # Another process may just have made the folder of the runs.
            others = [file for file in self.path.glob("[!.]*") if file != self.runs]
            if others and not self.settings.exists():
                raise InputError(f"{self.path}: is not empty and holds no experiment; give another --out")
            self.runs.mkdir(parents=True, exist_ok=True)
            with self.alone("settings"):
                self._settle(config)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); give another --out"
            ) from error

    def _settle(self, config: ExperimentConfig) -> None:
        if self.settings.exists():
            earlier = ExperimentConfig.read(self.settings)
            if earlier.experiment != config.experiment:
                raise InputError(
                    f"{self.path}: holds the experiment {earlier.experiment}, not {config.experiment}; "
                    "give another --out"
                )
            changed = earlier.differences(config)
            if changed and any(self.runs.glob("*/*/config.yaml")):
                raise InputError(
                    f"{self.path}: holds this experiment with other options ({'; '.join(changed)}); "
                    "give the same, or another --out"
                )
            if changed:
                self.costs.unlink(missing_ok=True)
            else:
                config = replace(config, seeds=max(config.seeds, earlier.seeds))
        write_text(self.settings, config.to_yaml())

    def read_costs(self) -> dict[str, Any] | None:
        """What was measured of the networks; None where nothing was.

        Raises:
            InputError: If the file is damaged.
        """
        try:
            found: dict[str, Any] = json.loads(self.costs.read_text(encoding="utf-8"))
            found["machine"], found["networks"], found["rows"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.costs}: is damaged; remove it, and it is measured anew") from error
        return found

    def tested(self, configuration: str, seed: int, split: str) -> dict[str, Any] | None:
        """What the test of a run gave; None where it has not been made."""
        file = self.run(configuration, seed) / f"evaluation-{split}" / "metrics.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found if isinstance(found["top1"], float) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def split(self) -> str | None:
        """The split on which runs were tested; None where none was."""
        return next((s for s in ("test", "val") if any(self.runs.glob(f"*/*/evaluation-{s}/metrics.json"))), None)

    def summary(self, configuration: str, seed: int) -> RunSummary | None:
        """The state of a run; None before it has begun."""
        path = self.run(configuration, seed)
        return summarise_run(path) if RunFolder(path).config.exists() else None
