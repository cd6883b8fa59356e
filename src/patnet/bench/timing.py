"""Interleaved timing: all candidates run in every round, so that a drift of the machine's speed affects all equally."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

Clock = Callable[[], float]

# Duration of the runs of a fast candidate in a round, in s: a single run may be shorter than a time slice of the
# scheduler, and the first one finds the caches filled by another candidate.
ROUND_SECONDS = 0.05


def stopwatch(run: Callable[[], object], device: str = "cpu", clock: Clock = time.perf_counter) -> float:
    """Duration of a run in s; on a GPU until it has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """PyTorch computes with this number of CPU threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Timing:
    """The durations of a candidate's runs in s, by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def runs(self) -> list[float]:
        """Durations of all runs in s."""
        return [run for runs in self.rounds for run in runs]

    @property
    def medians(self) -> np.ndarray:
        """Median of each round in s."""
        return np.array([np.median(runs) for runs in self.rounds])

    @property
    def median(self) -> float:
        """Median of the rounds' medians in s."""
        return float(np.median(self.medians))


def interleave(
    calls: Sequence[Callable[[], object]],
    timings: Sequence[Timing],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = sys.maxsize,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
) -> None:
    """Measure calls that have run before, round after round, each of them in every round.

    The order is reversed from round to round, so that a drift within a round favours none. In a round a fast call runs
    several times; the first of these finds cold caches and is not counted.

    Args:
        calls: What to measure.
        timings: Where to record each call's runs, after each complete round.
        seconds: No round starts after this time, except the first `min_rounds`.
    """
    end = clock() + seconds
    once = [stopwatch(call, device, clock) for call in calls]
    repeats = [max(1, min(20, round(ROUND_SECONDS / max(t, 1e-9)))) for t in once]
    order = list(range(len(calls)))
    for done in range(max_rounds):
        if done >= min_rounds and clock() >= end:
            break
        runs: dict[int, list[float]] = {}
        for i in order:
            warm_up = int(repeats[i] > 1)
            runs[i] = [stopwatch(calls[i], device, clock) for _ in range(repeats[i] + warm_up)][warm_up:]
        for i, timing in enumerate(timings):
            timing.rounds.append(runs[i])
        order.reverse()


def ratio(first: Timing, second: Timing) -> dict[str, float]:
    """Median (`ratio`) and quartiles (`low`, `high`) of the first's time relative to the second's in each round."""
    low, middle, high = np.percentile(first.medians / second.medians, (25, 50, 75)).round(4).tolist()
    return {"ratio": middle, "low": low, "high": high}
