"""Tests of the mechanisms behind the paper's claims on synthetic tasks: train, resume, plan, report."""

import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mechanisms.protocol import BATCH_SIZE, MARGIN, SEEDS, TEST_IMAGES, TESTS, Test
from mechanisms.report import publish
from mechanisms.training import runs_of, train
from pool import RESULTS, Job, finish, fix, missing

from patnet import InputError
from patnet.cli import main
from patnet.cli.parser import refuse_idle
from patnet.errors import nearest
from patnet.train.config import PositiveInt

NAME = "experiments/mechanisms/run.py"
SUMMARY = __doc__
EXAMPLES = f"""examples:
  python experiments/mechanisms/run.py all --plan      how many runs are left, and how long they take
  python experiments/mechanisms/run.py all             resumes: runs with results are not repeated
  python experiments/mechanisms/run.py relation --processes 4
  python experiments/mechanisms/run.py report

Tests: {", ".join(TESTS)}."""
EXTRA = ("train", ("jsonargparse", "matplotlib", "scipy"))
POSITIONAL = {"names": "+"}


def protocol_of(test: Test) -> dict[str, Any]:
    """What the results of a test depend on, as JSON."""
    constants = {"batch_size": BATCH_SIZE, "test_images": TEST_IMAGES, "margin": MARGIN, "seeds": SEEDS}
    return json.loads(json.dumps({**asdict(test), **constants}))


def run(
    names: list[str],
    *,
    out: str = "experiments/results",
    page: str = "docs/experiments/mechanisms.md",
    processes: PositiveInt = 2,
    plan: bool = False,
    given: Collection[str] = (),
) -> int:
    """Run tests, or write the report.

    Args:
        names: Names of tests, or all, or report.
        out: Folder of the results.
        page: Page of the report.
        processes: Runs at a time, one thread each.
        plan: Print what is left and how long it takes, and run nothing.
    """
    report = names == ["report"]
    refuse_idle(given, {"report": (report, ["page"]), "names of tests": (not report, ["processes", "plan"])})
    chosen = list(TESTS) if names in (["all"], ["report"]) else names
    for name in chosen:
        if name not in TESTS:
            raise InputError(f"{name}: there are {', '.join(TESTS)}; all; and report{nearest(name, TESTS)}")
    for name in chosen:
        fix(protocol_of(TESTS[name]), Path(out) / name / RESULTS)
    if report:
        print(publish(Path(out), Path(page)))
        return 0
    torch.set_num_threads(1)
    jobs: list[Job] = []
    for name in chosen:
        store, runs = Path(out) / name / RESULTS, runs_of(TESTS[name], SEEDS)
        if plan:
            left = len(missing(runs, store))
            once = {run[:3]: run for run in runs}  # 20 steps of each kind, without its test
            seconds = sum(train(TESTS[name], run, 20, 0)["seconds"] for run in once.values()) / len(once)
            minutes = left * seconds * TESTS[name].steps / 20 / 60 / processes
            print(f"{name}: {len(runs) - left} of {len(runs)} runs done, about {minutes:.0f} min left")
            continue
        jobs += [Job(store, run, train, (TESTS[name], run)) for run in runs]
    jobs.sort(key=lambda job: job.run.seed)  # all tests with the first seed, then with the next
    return int(finish(jobs, processes) > 0) if jobs else 0


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
