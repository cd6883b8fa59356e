"""An experiment from its costs to its report; whatever is there already is not done again."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..errors import InputError, nearest
from ..files import write_text
from ..train.evaluate import evaluate
from ..train.figures import save_figure
from ..train.fit import fit, open_run_data
from ..train.progress import say_time
from ..train.run import RunFolder
from ..train.runs import summarise_run
from .catalogue import experiment
from .cost import CostOptions, match_widths, measure_costs
from .figures import draw_experiment
from .folder import ExperimentFolder, claimed
from .report import to_markdown
from .results import summarise
from .settings import ExperimentConfig, Variant

__all__ = ["chosen_configurations", "device_of", "run_experiment", "test_split"]

Run = tuple[str, int]  # configuration and seed


def device_of(config: ExperimentConfig) -> str:
    """Where costs are measured: `cuda` where there is a GPU and the runs may take it."""
    return "cuda" if config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def test_split(config: ExperimentConfig) -> str:
    """The split on which runs are tested, `"test"` or, for data that has none, `"val"`.

    Raises:
        InputError: If the data has neither.
    """
    splits = open_run_data(config.run_config(Variant(config.model, {}), config.seed, Path()))
    if splits.masks:
        raise InputError(f"data set {config.data!r}: has masks and no classes to test; choose another")
    if splits.test is not None:
        return "test"
    if splits.val is None:
        raise InputError(
            f"data set {config.data!r}: has pictures neither for test nor for validation; give --val_fraction 0.1"
        )
    return "val"


def chosen_configurations(config: ExperimentConfig, only: Sequence[str]) -> list[str]:
    """The names of the configurations to run.

    Raises:
        InputError: If `only` names one that there is not.
    """
    known = [c.name for c in experiment(config.experiment).configurations]
    for name in only:
        if name not in known:
            raise InputError(
                f"--only {name}: no configuration of {config.experiment}{nearest(name, known)}; "
                f"there are {', '.join(known)}"
            )
    return [name for name in known if not only or name in only]


def run_experiment(
    config: ExperimentConfig,
    costs: CostOptions,
    *,
    only: Sequence[str] = (),
    cost_only: bool = False,
    console: Console | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure the networks, train and test them with each seed, and write the report.

    Any number of processes can do this with the same folder: each run is done by one of them, and goes on where it was
    interrupted. The report is written after each run, so that it is never behind.

    Args:
        config: The options.
        costs: How costs are measured.
        only: Configurations to train; none for all.
        cost_only: Measure the costs, anew if they are there, and nothing else.
        console: Where to show progress.
        command: That led here, for the report.

    Returns:
        What `results.json` holds.

    Raises:
        InputError: If the options, the data or the folder cannot be used.
        patnet.train.Interrupted: After a run was left so that it can be resumed.
    """
    console = console or Console()
    config.check()
    costs.check()
    names = chosen_configurations(config, only)
    split = None if cost_only else test_split(config)
    folder = ExperimentFolder(config.out)
    folder.start(config)
    with folder.alone("costs"):
        measured = folder.read_costs()
        if measured is None or cost_only:
            measured = _measure(config, costs, measured, lambda line: console.print(line, highlight=False))
            write_text(folder.costs, json.dumps(measured, indent=1) + "\n")
    if split is not None:
        variants = {name: Variant(n["model"], n["model_args"]) for name, n in measured["networks"].items()}
        runs = [(name, seed) for seed in config.all_seeds for name in names]
        _train(config, folder, variants, runs, split, console, lambda: _write(config, folder, split, command))
    return _write(config, folder, split or folder.split(), command)


def _measure(
    config: ExperimentConfig, costs: CostOptions, earlier: dict[str, Any] | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The costs, with the networks measured before, for runs may have begun with them."""
    described = experiment(config.experiment)
    variants = config.variants()
    if described.matched and earlier is None:
        variants = match_widths(variants, described.baseline, costs, say)
    elif earlier is not None:
        variants = {name: Variant(n["model"], n["model_args"]) for name, n in earlier["networks"].items()}
    return measure_costs(variants, described.baseline, costs, say)


def _train(
    config: ExperimentConfig,
    folder: ExperimentFolder,
    variants: dict[str, Variant],
    runs: Sequence[Run],
    split: str,
    console: Console,
    report: Callable[[], object],
) -> None:
    """Train and test all runs that no other process is at."""
    for number, (name, seed) in enumerate(runs, start=1):
        path = folder.run(name, seed)
        path.parent.mkdir(exist_ok=True)
        with claimed(path.parent / f".{path.name}") as got:
            if not got or folder.tested(name, seed, split) or RunFolder(path).is_held():
                continue
            left = _time_left(folder, runs, split)
            console.print(
                f"run {number} of {len(runs)}: {name}, seed {seed}{f', about {say_time(left)} left' if left else ''}",
                highlight=False,
            )
            try:
                _one(config.run_config(variants[name], seed, path), config, split, console)
            except InputError as error:
                raise InputError(f"configuration {name}, seed {seed}: {error}") from error
        report()


def _one(run: Any, config: ExperimentConfig, split: str, console: Console) -> None:
    """Train and test one run."""
    folder = RunFolder(run.out)
    if not folder.config.exists():
        fit(run, console=console)
    elif summarise_run(run.out).state != "finished":
        fit(run, resume=True, console=console)
    evaluate(
        run.out,
        # Pictures that chose the best epoch say too much good of it.
        which="best" if split == "test" else "last",
        views=config.views,
        split=split,
        batch_size=config.batch_size if isinstance(config.batch_size, int) else 64,
        workers=config.workers,
        accelerator=config.accelerator,
        console=console,
    )
    shutil.rmtree(folder.checkpoint.parent, ignore_errors=True)  # four times as large as the weights


def _time_left(folder: ExperimentFolder, runs: Sequence[Run], split: str) -> float | None:
    """Seconds that these runs will take all processes that are at them, as long as those that were done took."""
    summaries = {run: folder.summary(*run) for run in runs}
    costs = folder.read_costs() or {"rows": []}
    first = {row["configuration"]: row["median_ms"] for row in reversed(costs["rows"])}
    done = [s for s in summaries.values() if s and s.state == "finished"]
    if not done:
        return None
    pace = sum(s.seconds for s in done) / sum(first[Path(s.run).parent.name] for s in done)
    left = 0.0
    for (name, seed), summary in summaries.items():
        if folder.tested(name, seed, split) is None:
            left += pace * first[name] * (1 - (summary.epochs / summary.of if summary and summary.of else 0))
    return left / (1 + sum(s is not None and s.state == "running" for s in summaries.values()))


def _write(config: ExperimentConfig, folder: ExperimentFolder, split: str | None, command: str) -> dict[str, Any]:
    """The results and the report, as far as there are any."""
    with folder.alone("report"):
        results = summarise(folder, split, command)
        analyse = experiment(config.experiment).analyse
        if analyse and results["complete"]:
            runs = {name: [folder.run(name, seed) for seed in results["seeds"]] for name in results["configurations"]}
            try:
                results["finding"], results["analysis"] = analyse(folder.path, runs)
            except InputError as error:  # too few or too small pictures: the comparison stands without it
                results["analysis"] = [f"There is none: {error}."]
        write_text(folder.results, json.dumps(results, indent=1) + "\n")
        compared = len(results["configurations"]) > 1
        if compared:
            save_figure(draw_experiment(results), folder.picture)
        write_text(folder.report, to_markdown(results, folder.picture.name if compared else None))
    return results
