"""Test the paper's claims on Fashion-MNIST: search a learning rate, train all configurations, measure costs, report."""

import json
import sys
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from cost import match_width, measure_costs
from fit import folder_of, open_images, steps, train_run
from pool import RESULTS, Job, finish, fix, missing, read
from protocol import PROTOCOL, Protocol, Run, read_protocol
from report import publish

from patnet import InputError
from patnet.bench import markdown_table
from patnet.cli import main
from patnet.cli.parser import refuse_idle
from patnet.files import write_text
from patnet.train.config import PositiveFloat, PositiveInt

NAME = "experiments/run.py"
SUMMARY = __doc__
EXAMPLES = """examples:
  python experiments/run.py plan                     the runs in their order, and how long they take here
  python experiments/run.py search --processes 2     choose learning rate and epochs on validation images
  python experiments/run.py train --processes 2      train what has no result; the same command resumes
  python experiments/run.py costs                    parameters, GMACs, latency: two minutes
  python experiments/run.py report                   docs/experiments.md, at any time

experiments/protocol.yaml says what is trained and compared. A directory with runs refuses another protocol."""
EXTRA = ("train", ("jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"command": None}


def run(
    command: Literal["plan", "search", "train", "match", "costs", "report"],
    *,
    protocol: str = str(PROTOCOL),
    out: str = "experiments/results/claims",
    networks: str = "runs/experiments",
    data_root: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    processes: PositiveInt = 1,
    only: list[str] = [],  # noqa: B006
    seconds: PositiveFloat = 60.0,
    pages: str = "docs",
    given: Collection[str] = (),
) -> int:
    """Do one step of the experiments.

    Args:
        command: plan, search, train, match (the widths of the mixers that are as fast as base), costs or report.
        protocol: File of the protocol.
        out: Directory of the results.
        networks: Directory of the trained networks.
        data_root: Folder of the four IDX files of Fashion-MNIST.
        device: Device of the training. What the other has in full is trained with --only alone.
        processes: Runs that are trained at the same time, each in a process with one thread, or a stream of the GPU.
        only: Configurations to train or match; all by default. Runs of these that have no network are trained again.
        seconds: Duration of the measurements of costs, or of all widths of a configuration for match.
        pages: Folder of the page experiments.md and of images/, for report.
    """
    training = command in ("plan", "search", "train")
    needs = {"train or match": (command in ("train", "match"), ["only"]), "report": (command == "report", ["pages"])}
    needs |= {
        "plan, search or train": (training, ["data_root", "device", "processes"]),
        "train": (training, ["networks"]),
    }
    refuse_idle(given, needs | {"costs or match": (command in ("costs", "match"), ["seconds"])})
    table, path = read_protocol(Path(protocol)), Path(out)
    only = only or (["conv", "dwconv", "pconv"] if command == "match" else [])
    if unknown := [name for name in only if name not in table.configurations]:
        raise InputError(f"--only {unknown[0]}: is no configuration; there are {', '.join(table.configurations)}")
    for name in only or table.configurations:
        table.network(name)  # an error message before hours of training
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; leave it out")
    torch.set_num_threads(1)
    if command == "match":
        for name in only:
            print(f"{name}, latency by embed_dim: {match_width(table, name, seconds)}")
        return 0
    fix(yaml.safe_load(Path(protocol).read_text(encoding="utf-8")), path / RESULTS)
    if command == "costs":
        write_text(path / "costs.json", json.dumps(measure_costs(table, seconds), indent=1) + "\n")
        return 0
    if command == "report":
        print(publish(table, path, Path(pages)))
        return 0
    if command == "plan":
        return plan(table, path, data_root, device, processes)
    if command == "search":
        runs = search_of(table, path, device)
    elif only:
        runs = [run for run in table.runs(*choose(table, path, device), device) if run.configuration in only]
    else:
        runs = runs_of(table, path, device, *choose(table, path, device))
    open_images(table.data, data_root, 0.0, "cpu")  # its error message before the processes start
    # A run that has a result but no network, as in a clone, is trained again; its new result stays beside the network.
    folders = {run: folder_of(run, Path(networks)) for run in runs}
    done = {*runs} - {*missing(runs, path / RESULTS)} if command == "train" and only else set()
    again = {run for run in done if not (folders[run] / "config.json").is_file()}
    for run in again:
        (folders[run] / RESULTS).unlink(missing_ok=True)
    stores = {run: (folders[run] if run in again else path) / RESULTS for run in runs}
    jobs = [Job(stores[run], run, train_run, (run, table, Path(networks), data_root)) for run in runs]
    failed = finish(jobs, processes, device)
    if command == "search" and not failed:
        lr, epochs = choose(table, path, device)
        print(f"Chosen: learning rate {lr:g}, {epochs} epochs.")
    return int(failed > 0)


def complete(runs_on: Callable[[str], list[Run]], out: Path, device: str) -> list[Run]:
    """The runs on a device that has results of all, which nobody wants to train again, or else on the given one."""
    both = [runs_on(name) for name in ("cpu", "cuda")]
    return next((runs for runs in both if not missing(runs, out / RESULTS)), runs_on(device))


def search_of(protocol: Protocol, out: Path, device: str) -> list[Run]:
    """The runs of the search, whose choice holds for both devices."""
    return complete(protocol.search_runs, out, device)


def runs_of(protocol: Protocol, out: Path, device: str, lr: float, epochs: int) -> list[Run]:
    """The runs of the experiments."""
    return complete(partial(protocol.runs, lr, epochs), out, device)


def choose(protocol: Protocol, out: Path, device: str) -> tuple[float, int]:
    """Learning rate and epochs after the protocol's rule: the fewest epochs that lose no more than the margin.

    Raises:
        InputError: If runs of the search are missing.
    """
    runs = search_of(protocol, out, device)
    if absent := missing(runs, out / RESULTS):
        raise InputError(f"{out}: {len(absent)} of {len(runs)} runs of the search are missing; run the command search")
    top1 = {Run(*(result[field] for field in Run._fields)): result["top1"] for result in read(out / RESULTS)}
    enough = [run for run in runs if top1[run] >= max(top1[run] for run in runs) - protocol.search["margin"]]
    found = min(enough, key=lambda run: (run.epochs, -top1[run]))
    return found.lr, found.epochs


def plan(protocol: Protocol, out: Path, data_root: str | None, device: str, processes: int) -> int:
    """Measure training steps of each configuration, and print the missing runs in their order with their hours."""
    images, tested = open_images(protocol.data, data_root, 0.0, device)
    try:
        lr, epochs = choose(protocol, out, device)
    except InputError:
        lr, epochs = protocol.search["lr"][0], max(protocol.search["epochs"])
        searched = missing(protocol.search_runs(device), out / RESULTS)
        print(f"search: {len(searched)} runs; here with {epochs} epochs, which the search may lower")
    # CPU time, because other processes may run now.
    clock = time.perf_counter if device == "cuda" else time.process_time
    hours: dict[str, float] = {}
    for name in protocol.configurations:
        seconds, began = [], clock()
        # A CUDA graph, which steps are after some, is not captured on the default stream.
        with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
            for loss in islice(steps(protocol.network(name), images, protocol, lr, epochs, 0), 6):
                loss.item()  # waits for a GPU
                seconds.append(clock() - began)
                began = clock()
        # The test has forward passes alone, about a third of a training step.
        images_seen = epochs * len(images.labels) + len(tested.labels) / 3
        hours[name] = min(seconds) * images_seen / protocol.batch_size / 3600
    where, at_once = f"for {processes} processes that have a core each", processes
    if device == "cuda":
        where, at_once = "on one GPU", 1  # which does many side by side hardly faster in sum than a few
    rows: list[list[Any]] = []
    counted: set[Run] = set()
    everything = runs_of(protocol, out, device, lr, epochs)
    left = set(missing(everything, out / RESULTS))
    for seeds in protocol.seeds:
        for name, experiment in protocol.experiments.items():
            mine = {run for run in left if run.seed in seeds and run.configuration in experiment.configurations}
            new = mine - counted
            counted |= new
            spent = (f"{sum(hours[run.configuration] for run in some) / at_once:.1f}" for some in (new, counted))
            rows.append([f"{name}, seeds {seeds[0]} to {seeds[-1]}", str(len(new)), *spent])
    print("\n".join(markdown_table(["experiment", "missing runs", "hours", "hours in all"], rows)))
    longest = max(hours, key=lambda name: hours[name])
    print(
        f"{len(left)} of {len(everything)} runs are missing, of {epochs} epochs, {60 * min(hours.values()):.1f} to "
        f"{60 * hours[longest]:.1f} min each ({longest}); hours {where}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
