"""`patnet experiment`: the paper's claims, tried."""

import json as jsonlib
import shlex
import signal
import sys
from typing import Any

from jsonargparse import ArgumentParser
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..experiments import EXPERIMENTS, CostOptions, ExperimentConfig, run_experiment
from ..experiments.catalogue import experiment
from ..experiments.folder import ExperimentFolder
from ..experiments.plan import plan_experiment
from ..experiments.publish import publish
from ..experiments.report import accuracy_table, cost_table, difference_table, limits, verdict
from ..experiments.run import device_of
from ..experiments.settings import DEFAULTS
from ..train.fit import Interrupted
from ..train.progress import say_time
from ..train.recipes import RECIPES
from .train import RESUME_ME

DESCRIPTION = "Try a claim of the paper: train configurations that differ in one thing, and compare cost and accuracy."
EPILOG = f"""Examples:
  patnet experiment list
  patnet experiment components --cost_only --out runs/components     parameters, GMACs and times, in about a minute
  patnet experiment components --data elpv --seeds 3 --plan          how long it would take here
  patnet experiment components --data elpv --seeds 3 --out runs/components
  patnet experiment attentions --data photos/ --in_chans 3 --size 96 --out runs/attentions
  patnet experiment ratio --recipe patnet_t2 --data /path/to/imagenet --out runs/ratio
  patnet experiment mixers --only pat_ch dwconv --out runs/mixers
  patnet experiment report runs/ --out docs/experiments     the reports of all experiments in runs/, without the runs

Experiments: {", ".join(EXPERIMENTS)}.
The other options are those of patnet train; the defaults are the recipe for ELPV, with fewer epochs. The same command
goes on where it was stopped, with more --seeds too. Several processes, on several machines, share the runs if they are
started with the same --out. report.md and report.png in it are never behind."""

CONFIG = ExperimentConfig


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("experiment", type=str, help="Of the experiment, or the word list or report.")
    parser.add_argument("folder", nargs="?", type=str | None, default=None, help="Of report: holds the experiments.")
    parser.add_argument(
        "--recipe", type=str | None, default=None, help=f"{', '.join(sorted(RECIPES))}, or a YAML file."
    )
    parser.add_argument("--only", nargs="+", type=str, default=[], help="Train these configurations alone.")
    parser.add_argument("--plan", action="store_true", help="Say how long it would take, without doing it.")
    parser.add_argument("--plan_seconds", type=float, default=6.0, help="How long --plan measures a configuration.")
    parser.add_argument("--cost_only", action="store_true", help="Measure what the networks cost, and nothing else.")
    parser.add_argument("--cost_sizes", nargs="+", type=int, default=[], help="Sides of pictures in px, beside --size.")
    parser.add_argument("--cost_batch", type=int, default=16, help="Pictures in a batch.")
    parser.add_argument("--cost_seconds", type=float, default=30.0, help="That measuring takes, roughly.")
    parser.add_argument("--cost_threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--runtime", type=str, default="eager", help="eager, compile, onnxruntime, openvino.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_class_arguments(ExperimentConfig, skip={"experiment"})
    parser.set_defaults({**DEFAULTS, "out": ""})


def run(*, recipe: None, json: bool, **options: Any) -> int:
    """List, plan, or try."""
    folder = options.pop("folder")
    if options["experiment"] == "list":
        return _list(json)
    if options["experiment"] == "report":
        if not folder or not options["out"]:
            raise InputError("report: give the folder of the experiments and --out, a folder for their reports")
        print(publish(folder, options["out"]))
        return 0
    if folder:
        raise InputError(f"{folder}: only report takes a folder; give --out for that of an experiment")
    described = experiment(options["experiment"])
    only, plan, plan_seconds, cost_only = (options.pop(o) for o in ("only", "plan", "plan_seconds", "cost_only"))
    sizes, runtime = options.pop("cost_sizes"), options.pop("runtime")
    cost = {key: options.pop(f"cost_{key}") for key in ("batch", "seconds", "threads")}
    config = ExperimentConfig(**options)
    if plan:
        planned = plan_experiment(config, only=only, seconds=plan_seconds, console=Console(stderr=True))
        if json:
            print(jsonlib.dumps(planned, indent=1))
        else:
            _print_plan(planned)
        return 0
    if not config.out:
        raise InputError("give --out too, a folder for the experiment; patnet experiment --help shows examples")
    all_sizes = tuple(dict.fromkeys([config.size, *(sizes or described.sizes)]))
    costs = CostOptions(sizes=all_sizes, device=device_of(config), runtime=runtime, **cost)
    progress = Console(stderr=True, soft_wrap=True)
    if config.seeds == 1 and not cost_only and len(described.configurations) > 1:
        progress.print("Warning: --seeds 1: there will be no interval and no test; take 2 or more", highlight=False)
    try:
        results = run_experiment(
            config,
            costs,
            only=only,
            cost_only=cost_only,
            console=progress,
            command=shlex.join(["patnet", *sys.argv[1:]]),
        )
    except Interrupted as stopped:
        progress.print("Interrupted. The same command goes on.", highlight=False)
        return 130 if stopped.wish == signal.SIGINT else RESUME_ME
    if json:
        print(jsonlib.dumps(results, indent=1))
    else:
        _print(results, ExperimentFolder(config.out))
    return 0


def _list(json: bool) -> int:
    if json:
        listed = {
            name: {"claim": e.claim, "baseline": e.baseline, "configurations": [c._asdict() for c in e.configurations]}
            for name, e in EXPERIMENTS.items()
        }
        print(jsonlib.dumps(listed, indent=1))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("experiment", no_wrap=True)
    table.add_column("claim", ratio=3)
    table.add_column("configurations, the baseline first", ratio=2)
    for name, e in EXPERIMENTS.items():
        others = [c.name for c in e.configurations if c.name != e.baseline]
        table.add_row(name, e.claim, ", ".join([e.baseline, *others]))
    Console(highlight=False).print(table)
    return 0


def _table(headings: list[str], lines: list[list[str]], title: str) -> Table:
    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _print(results: dict[str, Any], folder: ExperimentFolder) -> None:
    console = Console(highlight=False)
    console.print(_table(*cost_table(results), "Cost"))
    if results["accuracies"]:
        console.print(_table(*accuracy_table(results), f"Accuracy, {results['split']}"))
    if results["differences"]:
        console.print(_table(*difference_table(results), "Differences"))
    for line in results["analysis"]:
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"{verdict(results)} This cannot show {limits(results)}", soft_wrap=True, markup=False)
    left = sum(r["top1"] is None for r in results["runs"])
    if left:
        console.print(f"{left} of {len(results['runs'])} runs are not there yet; the same command goes on.")
    for file in folder.shown():
        console.print(str(file), soft_wrap=True, markup=False)


def _print_plan(planned: dict[str, Any]) -> None:
    console = Console(highlight=False)
    lines = [
        [
            row["configuration"],
            f"{row['images_per_s']:.1f}",
            say_time(row["seconds_per_run"]),
            str(row["runs_to_do"]),
            say_time(row["seconds_per_run"] * row["runs_to_do"]),
        ]
        for row in planned["configurations"]
    ]
    headings = ["configuration", "training, images/s", "a run", "runs to do", "in all"]
    console.print(_table(headings, lines, f"{planned['experiment']}, {planned['epochs']} epochs"))
    console.print(f"In all {say_time(planned['seconds'])}.")
    console.print(f"Assumed: {planned['assumption']}", soft_wrap=True)
