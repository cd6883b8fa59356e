"""Test the paper's claims: measure, train and test the configurations of an experiment, and write its report."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from catalogue import EXPERIMENTS, find
from config import ExperimentConfig
from cost import match_widths, measure_costs
from report import publish, render
from rich.console import Console
from study import Study
from torch import Tensor, nn

from patnet import InputError, load
from patnet.bench import markdown_table
from patnet.cli import main
from patnet.data import eval_transform
from patnet.errors import nearest
from patnet.files import write_text
from patnet.train import Interrupted, RunDirectory, open_run_data, recipes, train
from patnet.train.callbacks import format_duration
from patnet.train.config import PositiveFloat
from patnet.train.evaluate import evaluate
from patnet.train.plan import plan as plan_run
from patnet.train.summary import summarise_run

NAME = "experiments/run.py"
SUMMARY = __doc__
EXAMPLES = f"""examples:
  python experiments/run.py list
  python experiments/run.py components --cost-only         parameters, GMACs and latency, about a minute
  python experiments/run.py components --plan              how long training takes here
  python experiments/run.py components                     costs, three runs of each configuration, report
  python experiments/run.py attentions --data images/ --in-chans 3 --img-size 96 --out runs/attentions
  python experiments/run.py ratio --recipe patnet_t2 --data imagenet/ --out runs/ratio
  python experiments/run.py mixers --only pat_ch dwconv
  python experiments/run.py report runs/experiments --out docs/experiments     the reports of all experiments there

Experiments: {", ".join(EXPERIMENTS)}.
The other options are those of patnet train; the defaults are a short form of the recipe for ELPV. The same command
resumes, also with more --seeds. With --share 1/2 and 2/2 two processes do half of the runs each."""
EXTRA = ("train", ("lightning", "jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"name": None, "folder": "?"}
CONFIG, RECIPES = ExperimentConfig, recipes.RECIPES
ANALYSED_IMAGES = 1024  # at most


def run(
    name: str,
    folder: str | None = None,
    *,
    config: ExperimentConfig,
    given: frozenset[str],
    only: list[str] = [],  # noqa: B006
    plan: bool = False,
    plan_seconds: PositiveFloat = 6.0,
    cost_only: bool = False,
    share: str = "1/1",
) -> int:
    """Run an experiment.

    Args:
        name: Name of the experiment, or list, or report.
        folder: Folder with experiments, for report.
        config: Options of the experiment.
        given: Names of the options on the command line.
        only: Configurations to train; all by default.
        plan: Print how long training takes, and do nothing else.
        plan_seconds: Duration of the measurement of each configuration for --plan.
        cost_only: Measure the costs, again if they are there, and train nothing.
        share: `2/3`: the second of three processes, which take turns in the list of runs.
    """
    if name == "list":
        for title, e in EXPERIMENTS.items():
            print(f"{title}: {e.claim}\n    {', '.join(e.configurations)} (baseline {e.baseline})")
        return 0
    if name == "report":
        if folder is None or not config.out:
            raise InputError("report: give the folder of the experiments, and --out, a folder for their reports")
        print(publish(Path(folder), Path(config.out)))
        return 0
    if folder is not None:
        raise InputError(f"{folder}: only report takes a folder; the directory of an experiment is --out")
    default = {f.name: f.default for f in fields(ExperimentConfig)}
    own = {o: v for o, v in find(name).options.items() if o not in given and getattr(config, o) == default[o]}
    study = Study(name, replace(config, **own))
    study.check()
    for configuration in only:
        if configuration not in study.networks:
            hint = f"{nearest(configuration, study.networks)}; there are {', '.join(study.networks)}"
            raise InputError(f"--only {configuration}: no configuration of {name}{hint}")
    chosen = [configuration for configuration in study.networks if not only or configuration in only]
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if plan:
        print_plan(study, chosen, plan_seconds, console)
        return 0
    command = shlex.join(["python", *sys.argv])
    try:
        report = execute(study, [] if cost_only else chosen, console, command, share)
    except Interrupted as interrupted:
        console.print(f"Interrupted. Resume with: {command}", markup=False)
        return interrupted.exit_code
    if report is None:
        console.print("The same command without --share writes the report.", markup=False)
        return 0
    print(report.read_text(encoding="utf-8"))
    console.print(str(report), markup=False)
    return 0


def execute(
    study: Study, chosen: Sequence[str], console: Console, command: str = "", share: str = "1/1"
) -> Path | None:
    """Measure the costs, train and test configurations with each seed, and write the report.

    Finished runs are not repeated, interrupted ones are resumed, and the report is written after each. Several
    processes may do this at the same time in one directory, each with its share of the runs, once there are costs; the
    report is then that of the same command without a share.
    Without chosen configurations, costs are measured again if they are there.

    Raises:
        InputError: If the data or the directory cannot be used.
        patnet.train.Interrupted: After a run was saved so that it can be resumed.
    """
    split = open_split(study)[0] if chosen else ""
    part, _, parts = share.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise InputError(f"--share {share}: must be like 1/2, the first of two processes")
    study = study.start()
    measured = study.read_costs()
    if measured is None and chosen and int(parts) > 1:
        raise InputError(f"--share {share}: measure the costs first, with --cost-only, so that all have the same ones")
    if measured is None or not chosen:
        networks, baseline, config = study.measured_networks(), study.experiment.baseline, study.config
        if study.experiment.matched and measured is None:
            networks = match_widths(networks, baseline, config, console.print)
        sizes = dict.fromkeys([config.img_size, *(config.cost_sizes or study.experiment.sizes)])
        measured = measure_costs(networks, baseline, list(sizes), config, console.print)
        write_text(study.costs, json.dumps(measured, indent=1) + "\n")
    runs = [(configuration, seed) for seed in study.seeds for configuration in chosen][int(part) - 1 :: int(parts)]
    for number, (configuration, seed) in enumerate(runs, start=1):
        if not study.tested(configuration, seed):
            console.print(f"run {number} of {len(runs)}: {configuration}, seed {seed}{time_left(study, runs)}")
            train_and_test(study, configuration, seed, split, console)
            if int(parts) == 1:
                write_report(study, command)
    return write_report(study, command) if int(parts) == 1 else None


def open_split(study: Study) -> tuple[Any, Any]:
    """The split on which runs are tested, `"test"` or, if the data set has none, `"val"`, and its images."""
    splits = open_run_data(study.run_config(study.experiment.baseline, study.config.seed))
    if splits.test is None and splits.val is None:
        data = study.config.data
        raise InputError(f"data set {data!r}: has neither test nor validation images; give --val-fraction 0.1")
    return ("val", splits.val) if splits.test is None else ("test", splits.test)


def time_left(study: Study, runs: Sequence[tuple[str, int]]) -> str:
    """How long the remaining runs take if they take as long as the finished ones, in one process."""
    seconds = [summarise_run(study.run(*run)).seconds for run in runs if study.tested(*run)]
    left = sum(seconds) / max(1, len(seconds)) * (len(runs) - len(seconds))
    return f", about {format_duration(left)} left" if seconds else ""


def train_and_test(study: Study, configuration: str, seed: int, split: Any, console: Console) -> None:
    """Train a run, or resume it, and test it."""
    config, path = study.config, study.run(configuration, seed)
    directory = RunDirectory(path)
    started = directory.config.exists()
    if not started or summarise_run(path).state != "finished":
        try:
            train(study.run_config(configuration, seed), resume=started, console=console)
        except InputError as error:
            raise InputError(f"configuration {configuration}, seed {seed}: {error}") from error
    # Validation images that chose the best epoch would overestimate its accuracy.
    checkpoint = "best" if split == "test" else "last"
    loaded = load(path, checkpoint=checkpoint)
    moved = study.components(configuration, loaded.model)
    options: dict[str, Any] = {"workers": config.workers, "accelerator": config.accelerator, "checkpoint": checkpoint}
    options["batch_size"] = config.batch_size if isinstance(config.batch_size, int) else 64
    tested = evaluate(loaded, split=split, tta=config.tta, console=console, **options)
    assert tested is not None  # there is one process
    result = {"split": split, "images": tested[0]["images"], "top1": tested[0]["top1"], "moved": moved}
    write_text(path / "tested.json", json.dumps(result) + "\n")
    shutil.rmtree(directory.checkpoint.parent, ignore_errors=True)  # four times as large as the weights


def write_report(study: Study, command: str) -> Path:
    """Write the results and the report, as far as there are any runs; analyse the networks once all are there."""
    results = study.results(command)
    write_text(study.path / "results.json", json.dumps(results, indent=1) + "\n")
    file, module = study.path / "analysis.json", study.experiment.analysis
    complete = results["runs"] and all(run["top1"] is not None for run in results["runs"])
    if module is not None and complete and not file.exists():
        try:
            analysis = module.measure(trained_networks(study))
        except InputError as error:  # images are too few or too small; the comparison does not need them
            analysis = {"error": str(error)}
        write_text(file, json.dumps(analysis) + "\n")
    render(study.path, study.path)
    return study.path / "report.md"


def trained_networks(study: Study) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """The network of each configuration with the first seed, and test images in random order."""
    images = open_split(study)[1]
    for configuration in study.networks:
        loaded = load(study.run(configuration, study.seeds[0]))
        transform = eval_transform(loaded.data_config)
        chosen: Iterator[Any] = islice(images, ANALYSED_IMAGES)  # of a stream
        if hasattr(images, "__getitem__"):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            chosen = (images[i] for i in order[:ANALYSED_IMAGES].tolist())
        yield configuration, loaded.model, torch.stack([transform(item[0]) for item in chosen])


def print_plan(study: Study, chosen: Sequence[str], seconds: float, console: Console) -> None:
    """Measure training steps of each configuration for some seconds, and print how long the missing runs take."""
    rows, total = [], 0.0
    for configuration in chosen:
        found = plan_run(study.run_config(configuration, study.config.seed), seconds=seconds, console=console)
        run_seconds = next(row["seconds_as_measured"] for row in found["estimates"] if row["devices"] == 1)
        missing = sum(study.tested(configuration, seed) is None for seed in study.seeds)
        total += missing * run_seconds
        rate = f"{found['phases'][-1]['together']:.1f}"
        rows.append([configuration, rate, format_duration(run_seconds), str(missing)])
    print("\n".join(markdown_table(["configuration", "training, images/s", "a run", "missing runs"], rows)))
    print(f"{format_duration(total)} in total, for one process on this machine, without the costs and the tests.")


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
