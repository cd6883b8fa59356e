"""Summaries of the runs in a folder: their state, their best result, and the options that differ."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..files import sha256
from .run import RunDirectory


@dataclass(frozen=True)
class RunSummary:
    """State and best result of a run.

    Attributes:
        run: Its directory.
        state: `"finished"`, `"running"`, `"interrupted"` or `"damaged"`.
        reason: What is damaged.
        started: When the run was created, in seconds since 1970.
        changed: When it last changed.
        config: Its options.
        history: The lines of its `metrics.csv`.
    """

    run: str
    state: str
    reason: str | None
    started: float | None
    changed: float | None
    config: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def model(self) -> str:
        """Name of the model; of a detector, its name and its backbone's."""
        return " ".join(str(self.config[name]) for name in ("model", "detector", "backbone") if name in self.config)

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.history)

    @property
    def seconds(self) -> float:
        """Training time in s, without interruptions."""
        return round(sum(row.get("seconds", 0.0) for row in self.history), 2)

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the best epoch; empty before the first."""
        return next((row for row in reversed(self.history) if row.get("best")), {})

    @property
    def best_top1(self) -> float | None:
        """Validation accuracy of the best epoch, in [0, 1]; None without validation."""
        return self.best.get("val_top1")

    @property
    def best_ap(self) -> float | None:
        """Average precision of a detector's masks, or else boxes, in [0, 1]."""
        return self.best.get("val_mask_AP", self.best.get("val_box_AP"))


def read_history(run: RunDirectory) -> list[dict[str, Any]]:
    """The metrics of the epochs of a run; none before the end of the first.

    Raises:
        InputError: If `metrics.csv` is not such a table.
    """
    if not run.metrics.exists():
        return []
    history: list[dict[str, Any]] = []
    try:
        with run.metrics.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if None in row.values():
                    raise ValueError(f"line {len(history) + 2} is cut short")
                numbers = {name: float(value) for name, value in row.items() if name not in ("epoch", "best") and value}
                history.append({"epoch": int(row["epoch"]), **numbers, "best": row["best"] == "True"})
        if [row["epoch"] for row in history] != list(range(1, len(history) + 1)) or not history:
            raise ValueError("the epochs do not count from 1")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{run.metrics}: not the metrics of a run ({reason})") from error
    return history


def _read_options(run: RunDirectory) -> dict[str, Any]:
    """The options of a run of any command.

    Raises:
        InputError: If there are none.
    """
    try:
        options = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError("no options in it")
        for name, kind in (("data", str), ("epochs", int), ("checkpoint_minutes", int | float)):
            if not isinstance(options.get(name), kind):
                raise ValueError(f"{name} is {options.get(name)!r}")
    except FileNotFoundError as error:
        raise InputError(f"{run.path}: holds no run (no config.yaml); patnet train creates one") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{run.config}: not the configuration of a run ({reason})") from error
    return options


def summarise_run(path: str | os.PathLike) -> RunSummary:
    """The state and the best result of the run in a directory, which may be damaged."""
    run = RunDirectory(path)
    files = [run.config, run.metrics, run.checkpoint, *run.tensorboard.glob("*")]
    times = [file.stat().st_mtime for file in files if file.exists()]
    reason, state, started = None, "damaged", None
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    try:
        config = _read_options(run)
        started = run.config.stat().st_mtime
        history = read_history(run)
    except InputError as error:
        reason = str(error)
    else:
        running = run.is_running()
        if running is None:  # a run saves at least this often
            running = time.time() - max(times) < 60 * max(10.0, 2 * config["checkpoint_minutes"])
        finished = len(history) >= config["epochs"] or _stopped_early(history, config.get("patience"))
        state = "finished" if finished else "running" if running else "interrupted"
    return RunSummary(str(path), state, reason, started, max(times, default=None), config, history)


def _stopped_early(history: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the validation result has not risen for so many epochs."""
    results = [
        row.get("val_top1", row.get("val_mask_AP", row.get("val_box_AP", -row.get("val_loss", 0.0)))) for row in history
    ]
    return patience is not None and bool(results) and len(results) - results.index(max(results)) > patience


def find_runs(root: str | os.PathLike) -> list[RunSummary]:
    """All runs in a folder and its subfolders, by name.

    Raises:
        InputError: If there is no such folder, or no run in it.
    """
    if not Path(root).is_dir():
        raise InputError(f"{root}: {'is not a folder' if Path(root).exists() else 'no such folder'}")
    found = []
    for directory, folders, files in os.walk(str(root)):
        if "config.yaml" in files:
            found.append(summarise_run(directory))
            # Folders of the run itself; Weights & Biases has a config.yaml of its own.
            own = {"best", "checkpoints", "last", "tensorboard", "wandb"}
            folders[:] = [name for name in folders if name not in own]
        folders.sort()
    if not found:
        raise InputError(f"{root}: holds no run (no config.yaml in it or its subfolders); patnet train creates one")
    return found


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without mappings: `model_kwargs.depths` for an entry of `model_kwargs`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def differing_options(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options except `out` that are not the same in all runs, with the value of each run."""
    options = [_flat(config) for config in configs]
    names = [name for name in dict.fromkeys(name for each in options for name in each) if name != "out"]
    values = {name: [each.get(name) for each in options] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def tested_top1(path: str | os.PathLike) -> float | None:
    """Test accuracy in [0, 1] that `patnet evaluate` has measured of the best weights; None if it has not."""
    try:
        found = json.loads((Path(path) / "evaluation-test" / "metrics.json").read_text())
        if found["weights_sha256"] != sha256(RunDirectory(path).best / "model.safetensors"):
            return None
        return float(found["top1"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
