"""Runs side by side: what is in a folder of runs, and where they differ."""

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from .run import RunFolder

__all__ = ["RunSummary", "differing_options", "find_runs", "read_history", "summarise_run", "tested_top1"]


@dataclass
class RunSummary:
    """What a run came to so far.

    Attributes:
        run: Its folder.
        state: `"finished"`, `"running"`, `"interrupted"` or `"damaged"`.
        reason: What is damaged.
        model: Name of the model; of a detector, its name and its backbone's.
        data: Data set.
        epochs: Epochs done.
        of: Epochs in all.
        best_top1: Validation accuracy of the best epoch, in [0, 1]; None without validation.
        best_ap: Of a detector, the average precision of its masks, or else of its boxes, in [0, 1].
        best_epoch: That epoch.
        started: When the run was made, in seconds since 1970.
        changed: When it last changed.
        seconds: Training time in s, over all its interruptions.
        config: Its options.
        history: The lines of its `metrics.csv`.
    """

    run: str
    state: str
    reason: str | None = None
    model: str | None = None
    data: str | None = None
    epochs: int = 0
    of: int | None = None
    best_top1: float | None = None
    best_ap: float | None = None
    best_epoch: int | None = None
    started: float | None = None
    changed: float | None = None
    seconds: float = 0.0
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def best(self) -> dict[str, Any]:
        """The line of the best epoch; empty before the first."""
        return next((row for row in reversed(self.history) if row.get("best")), {})


def read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """The epochs of a run, as its recorder had them; none before the end of the first.

    Raises:
        InputError: If `metrics.csv` is not such a table.
    """
    if not folder.metrics.exists():
        return []
    try:
        with folder.metrics.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        history: list[dict[str, Any]] = []
        for row in rows:
            if None in row.values():
                raise ValueError(f"line {len(history) + 2} is cut short")
            numbers = {name: float(value) for name, value in row.items() if name not in ("epoch", "best") and value}
            history.append({"epoch": int(row["epoch"]), **numbers, "best": row["best"] == "True"})
        if [row["epoch"] for row in history] != list(range(1, len(history) + 1)) or not history:
            raise ValueError("the epochs do not count from 1")
    except KeyError as error:
        raise InputError(f"{folder.metrics}: not the metrics of a run (no column {error})") from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{folder.metrics}: not the metrics of a run ({reason})") from error
    return history


def _read_options(folder: RunFolder) -> dict[str, Any]:
    """The options of a run of any kind.

    Raises:
        InputError: If the file holds none.
    """
    if not folder.config.is_file():
        folder.read_config()  # says so
    try:
        options = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder.config}: not the configuration of a run ({reason})") from error
    if not isinstance(options, dict):
        raise InputError(f"{folder.config}: not the configuration of a run (no options in it)")
    for name, kind in (("data", str), ("epochs", int), ("checkpoint_minutes", int | float)):
        if not isinstance(options.get(name), kind):
            raise InputError(f"{folder.config}: not the configuration of a run ({name} is {options.get(name)!r})")
    return options


def _state(folder: RunFolder, config: Mapping[str, Any], epochs: int, changed: float) -> str:
    if epochs >= config["epochs"]:
        return "finished"
    held = folder.is_held()
    if held is None:  # a run that goes on saves at least so often
        held = time.time() - changed < 60 * max(10.0, 2 * config["checkpoint_minutes"])
    return "running" if held else "interrupted"


def summarise_run(path: str | os.PathLike) -> RunSummary:
    """The state and the best result of the run in a folder, which may be damaged."""
    folder = RunFolder(path)
    files = [folder.config, folder.metrics, folder.checkpoint, *folder.tensorboard.glob("*")]
    times = [file.stat().st_mtime for file in files if file.exists()]
    summary = RunSummary(str(path), "damaged")
    if times:
        summary.changed = max(times)
    try:
        summary.config = config = _read_options(folder)
        summary.started = folder.config.stat().st_mtime
        summary.data, summary.of = config["data"], config["epochs"]
        summary.model = " ".join(str(config[k]) for k in ("model", "detector", "backbone") if k in config)
        summary.history = read_history(folder)
    except InputError as error:
        summary.reason = str(error)
        return summary
    summary.epochs = len(summary.history)
    summary.seconds = round(sum(row.get("seconds", 0.0) for row in summary.history), 2)
    summary.best_top1 = summary.best.get("val_top1")
    summary.best_ap = summary.best.get("val_mask_AP", summary.best.get("val_box_AP"))
    summary.best_epoch = summary.best.get("epoch")
    summary.state = _state(folder, config, summary.epochs, max(times))
    return summary


def find_runs(root: str | os.PathLike) -> list[RunSummary]:
    """All runs in a folder and below it, in the order of their names.

    Raises:
        InputError: If there is no such folder, or no run in it.
    """
    if not Path(root).is_dir():
        raise InputError(
            f"{root}: {'is not a folder' if Path(root).exists() else 'no such folder'}; give one with runs"
        )
    found = []
    for directory, folders, files in os.walk(str(root)):
        if "config.yaml" in files:
            found.append(summarise_run(directory))
            # Of a run itself; Weights & Biases keeps a config.yaml of its own.
            folders[:] = [
                name for name in folders if name not in {"best", "checkpoints", "last", "tensorboard", "wandb"}
            ]
        folders.sort()
    if not found:
        raise InputError(f"{root}: holds no run (no config.yaml in it or below); patnet train makes one")
    return found


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose values are no mappings: `model_args.depths` for a value within `model_args`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def differing_options(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options, all but `out`, that are not the same in all runs, with the value of each run."""
    options = [_flat(config) for config in configs]
    names = [name for name in dict.fromkeys(name for each in options for name in each) if name != "out"]
    values = {name: [each.get(name) for each in options] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def tested_top1(path: str | os.PathLike) -> float | None:
    """Top-1 accuracy in [0, 1] that `patnet evaluate` found on the test pictures; None where it has not been run."""
    try:
        return float(json.loads((Path(path) / "evaluation-test" / "metrics.json").read_text())["top1"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
