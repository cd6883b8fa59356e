"""How fast a training step is, beside an earlier version of this project."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import InputError
from .profile import Profile
from .step import training_step
from .timing import ceiling, in_turns, ratio, use_threads

__all__ = ["StepProfile", "measure_training", "profile_training", "source_of"]

ROOT = Path(__file__).resolve().parents[3]
HERE = "this version"
TRAINED_IN = ("fp32", "bf16")

# What stands in the names of torch's operations; the first kind that fits counts.
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "attention"),
    "norms": ("norm",),
    "activations": ("gelu", "relu", "sigmoid", "softmax"),
    "update of the weights": ("adam",),
    "copies": ("copy", "::cat", "clone", "::stack"),
}


def _git(*args: str, repository: Path) -> bytes:
    try:
        return subprocess.run(["git", *args], cwd=repository, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"--against {args[-2] if args[0] == 'archive' else args[-1]}: {repository} has no such version; "
            "give a revision that git knows there, in a clone of the project"
        ) from error


def source_of(revision: str, directory: Path, repository: Path = ROOT) -> Path:
    """Write the package as it was at a revision into a directory.

    Args:
        revision: What git calls it, or `first`.
        directory: An empty one.
        repository: Of the project.

    Returns:
        What to put on Python's path.

    Raises:
        InputError: If there is no such revision, or no repository.
    """
    if revision == "first":
        revision = _git("rev-list", "--max-parents=0", "HEAD", repository=repository).decode().split()[-1]
    archive = _git("archive", revision, "src", repository=repository)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    return directory / "src"


def _start(stack: ExitStack, source: Path, arguments: list[str]) -> Callable[[], object]:
    """A process that has warmed up, as a call that makes a step in it."""
    child = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("step.py")), *arguments],
            env={**os.environ, "PYTHONPATH": str(source)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(child.kill)
    pipe_in: Any = child.stdin
    pipe_out: Any = child.stdout

    def answer() -> None:
        if not pipe_out.readline():
            raise RuntimeError(f"the process that measures {source} ended with code {child.wait()}")

    def step() -> None:
        pipe_in.write("\n")
        pipe_in.flush()
        answer()

    answer()
    return step


def measure_training(
    model: str = "patnet_t0",
    *,
    size: int = 96,
    batch: int = 64,
    threads: int | None = None,
    against: str | None = "first",
    compiled: bool = True,
    precisions: Sequence[str] = ("fp32",),
    seconds: float = 40,
    repository: Path = ROOT,
) -> dict[str, dict[str, float]]:
    """Forward, backward and AdamW's update of random pictures, each version in a process of its own, in turns.

    Args:
        model: Name, as timm knows it.
        size: Of the pictures, px.
        batch: Pictures in a step.
        threads: Of the CPU; None for all.
        against: An earlier version; None for none.
        compiled: Measure this version with `torch.compile` too, which takes minutes to begin.
        precisions: Of `TRAINED_IN`, each for all versions.
        seconds: That the turns take.
        repository: Where earlier versions are found.

    Returns:
        For each version `images_per_s`, and where there is an earlier one `speed_up` over it in the first precision:
        the median of its rounds over the median here, with `low` and `high`, the quartiles of the rounds' own ratios.

    Raises:
        InputError: If there is no such earlier version or precision.
    """
    for precision in precisions:
        if precision not in TRAINED_IN:
            raise InputError(f"--precision {precision}: with --training it must be one of {', '.join(TRAINED_IN)}")
    arguments = [model, str(size), str(batch), str(threads or torch.get_num_threads())]
    package = Path(__file__).resolve().parents[2]
    with ExitStack() as stack:
        sources: dict[str, tuple[Path, list[str]]] = {}
        if against is not None:
            earlier = source_of(against, Path(stack.enter_context(tempfile.TemporaryDirectory())), repository)
            sources[f"version {against}"] = earlier, []
        sources[HERE] = package, ["--fused_optimizer"]
        if compiled:
            sources[f"{HERE}, compiled"] = package, ["--fused_optimizer", "--compile"]
        versions = {
            f"{name}, {precision}": (source, [*options, "--precision", precision])
            for precision in precisions
            for name, (source, options) in sources.items()
        }
        steps = [_start(stack, source, [*arguments, *options]) for source, options in versions.values()]
        turns = dict(zip(versions, in_turns(steps, seconds=seconds), strict=True))
    result = {name: {"images_per_s": batch / laps.median} for name, laps in turns.items()}
    if against is not None:
        for name, laps in turns.items():
            spread = ratio(turns[f"version {against}, {precisions[0]}"], laps)
            result[name] |= {"speed_up": spread.ratio, "low": spread.low, "high": spread.high}
    return result


@dataclass(frozen=True)
class StepProfile:
    """Where the time of an eager training step goes.

    Attributes:
        kinds: Time in ms and number of runs of each of `KINDS`, and of the rest.
        gflop: Of its convolutions and matrix products, forward and backward, 10^9 operations.
        gflop_per_s: At which rate torch multiplies large square matrices there.
    """

    kinds: Profile
    gflop: float
    gflop_per_s: float

    @property
    def least_ms(self) -> float:
        """Which time the convolutions and products would take at that rate."""
        return 1e3 * self.gflop / self.gflop_per_s


def profile_training(
    model: str = "patnet_t0", *, size: int = 96, batch: int = 64, threads: int | None = None, calls: int = 5
) -> StepProfile:
    """Where the time of an eager training step on random pictures goes, by kind of operation.

    Args:
        model: Name, as timm knows it.
        size: Of the pictures, px.
        batch: Pictures in a step.
        threads: Of the CPU; None for all.
        calls: Over which the times are averaged.
    """
    with use_threads(threads or torch.get_num_threads()):
        step = training_step(model, size, batch, fused_optimizer=True)
        for _ in range(2):
            step()
        with FlopCounterMode(display=False) as counter:
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(calls):
                step()
        kinds = dict.fromkeys([*KINDS, "rest"], (0.0, 0.0))
        for event in profiler.key_averages():
            kind = next((k for k, parts in KINDS.items() if any(part in event.key.lower() for part in parts)), "rest")
            ms, runs = kinds[kind]
            kinds[kind] = ms + event.self_cpu_time_total / 1e3 / calls, runs + event.count / calls
        found = ceiling("fp32")
        assert found is not None
        product, flop = found
        product()
        (laps,) = in_turns([product], seconds=0.5)
        return StepProfile(kinds, counter.get_total_flops() / 1e9, flop / laps.median / 1e9)
