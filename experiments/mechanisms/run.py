"""Tests of the mechanisms behind the paper's claims on synthetic tasks: train, resume, plan, choose rates, report."""

import json
import multiprocessing
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mechanisms.protocol import BATCH_SIZE, MARGIN, RATES, SEEDS, TEST_IMAGES, TESTS, TUNING_SEEDS, Test
from mechanisms.report import publish
from mechanisms.training import Run, runs_of, train

from patnet import InputError
from patnet.cli import main
from patnet.errors import nearest
from patnet.files import write_text
from patnet.train.config import PositiveInt

NAME = "experiments/mechanisms/run.py"
SUMMARY = __doc__
EXAMPLES = f"""examples:
  python experiments/mechanisms/run.py all --plan      how many runs are left, and how long they take
  python experiments/mechanisms/run.py all             resumes: runs with results are not repeated
  python experiments/mechanisms/run.py relation --processes 4
  python experiments/mechanisms/run.py relation --tune    the learning rates on other seeds, without results
  python experiments/mechanisms/run.py report

Tests: {", ".join(TESTS)}."""
EXTRA = ("train", ("jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"names": "+"}


def protocol_of(test: Test) -> dict[str, Any]:
    """What the results of a test depend on, as JSON."""
    described = {**asdict(test), "forms": {name: str(make) for name, make in test.forms.items()}}
    described |= {"batch_size": BATCH_SIZE, "test_images": TEST_IMAGES, "margin": MARGIN, "seeds": SEEDS}
    for name, make in test.forms.items():
        described["forms"][name] = f"{make.func.__name__} {make.keywords}"  # type: ignore[attr-defined]
    return json.loads(json.dumps(described))


def check_protocol(name: str, folder: Path) -> None:
    """Write the protocol of a test beside its results, and refuse another one.

    Raises:
        InputError: If there are results of another protocol.
    """
    file, new = folder / "protocol.json", protocol_of(TESTS[name])
    if not (file.exists() and any(folder.glob("*.*.*.*.json"))):
        write_text(file, json.dumps(new, indent=1) + "\n")
        return
    old = json.loads(file.read_text(encoding="utf-8"))
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            raise InputError(
                f"{folder}: the protocol changed after the first run: {key} was {old.get(key)}, and is {new.get(key)}; "
                "choose another --out, or go back to the protocol of the results"
            )


def _work(job: tuple[str, Run, float, Path | None]) -> dict[str, Any]:
    name, run, lr, folder = job
    torch.set_num_threads(1)
    result = train(TESTS[name], run, lr)
    if folder:
        write_text(folder / run.file, json.dumps(result) + "\n")
    return result


def _all(jobs: list[tuple[str, Run, float, Path | None]], processes: int) -> list[dict[str, Any]]:
    """The results, with the time left on standard error."""
    start, results = time.monotonic(), []
    if not jobs:
        return []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for result in pool.imap_unordered(_work, jobs):
            results.append(result)
            left = (time.monotonic() - start) / len(results) * (len(jobs) - len(results))
            shown = f"{result['task']}, {result['form']}, seed {result['seed']}: {result['seconds']:.0f} s"
            print(f"{len(results)} of {len(jobs)} runs, {left / 60:.0f} min left; {shown}", file=sys.stderr, flush=True)
    return results


def _tune(name: str, processes: int) -> None:
    """Print the mean accuracy of all forms at each learning rate, on the tuning seeds and the first task."""
    test = TESTS[name]
    task = next(task for task in test.tasks if task not in test.controls)
    jobs = [(name, run, lr, None) for lr in RATES for run in runs_of(test, TUNING_SEEDS) if run.task == task]
    found: dict[float, list[float]] = {}
    for result in _all(jobs, processes):
        found.setdefault(result["lr"], []).extend(result["accuracy"].values())
    for lr in RATES:
        print(f"{name}: learning rate {lr:g}, mean accuracy {100 * sum(found[lr]) / len(found[lr]):.1f} %")


def run(
    names: list[str],
    *,
    out: str = "runs/mechanisms",
    page: str = "docs/experiments/mechanisms.md",
    seeds: PositiveInt = 10,
    processes: PositiveInt = 2,
    plan: bool = False,
    tune: bool = False,
) -> int:
    """Run tests, or write the report.

    Args:
        names: Names of tests, or all, or report.
        out: Folder of the results.
        page: Page of the report.
        seeds: Number of seeds, the first ones.
        processes: Runs at a time, one thread each.
        plan: Print what is left and how long it takes, and run nothing.
        tune: Print what each learning rate gives on other seeds.
    """
    if names == ["report"]:
        print(publish(Path(out), Path(page)))
        return 0
    jobs: list[tuple[str, Run, float, Path | None]] = []
    for name in list(TESTS) if names == ["all"] else names:
        if name not in TESTS:
            raise InputError(f"{name}: there are {', '.join(TESTS)}; all; and report{nearest(name, TESTS)}")
        folder = Path(out) / name
        if tune:
            _tune(name, processes)
            continue
        runs = runs_of(TESTS[name], SEEDS[:seeds])
        left = [run for run in runs if not (folder / run.file).exists()]
        if plan:
            once = {run[:3]: run for run in runs}  # 20 steps of each kind, without its test
            seconds = sum(train(TESTS[name], run, 1e-3, 20, 0)["seconds"] for run in once.values()) / len(once)
            minutes = len(left) * seconds * TESTS[name].steps / 20 / 60 / processes
            print(f"{name}: {len(runs) - len(left)} of {len(runs)} runs done, about {minutes:.0f} min left")
        else:
            check_protocol(name, folder)
            jobs += [(name, run, TESTS[name].lr, folder) for run in left]
    jobs.sort(key=lambda job: job[1].seed)  # all tests with the first seed, then with the next
    _all(jobs, processes)
    return 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
