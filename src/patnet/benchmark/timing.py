"""Clocks: runs taken in turns, so that a machine whose speed drifts treats all alike, and the machine's best rate."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

__all__ = ["Spread", "best_chunk", "ceiling", "in_turns", "percentile", "ratio", "stopwatch", "use_threads"]

Clock = Callable[[], float]

# A turn of a fast model is repeated until it has taken about this long, in s: single runs are shorter than a
# scheduler's slice, and the first one finds the caches full of the other model.
# A GPU is nobody else's, and its runs are alike.
TURN_SECONDS = {"cpu": 0.05, "cuda": 0.02}


def percentile(values: Sequence[float], q: float) -> float:
    """The `q`-th percentile, linear between the two nearest values."""
    ordered = sorted(values)
    position = q / 100 * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def stopwatch(run: Callable[[], object], device: str = "cpu", clock: Clock = time.perf_counter) -> float:
    """Seconds that one run takes, until the GPU has finished where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Turns:
    """The runs of one participant, in s, by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def runs(self) -> list[float]:
        """All runs."""
        return [run for turn in self.rounds for run in turn]

    @property
    def medians(self) -> list[float]:
        """The median of each round, in s."""
        return [percentile(turn, 50) for turn in self.rounds]

    @property
    def median(self) -> float:
        """Median of the rounds, in s."""
        return percentile(self.medians, 50)


def in_turns(
    participants: Sequence[Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 200,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
) -> list[Turns]:
    """Measure participants that have run before, round after round, each one in every round.

    The order is reversed from round to round, so that a drift within a round favours none. In a round a fast
    participant runs several times; the first of these finds cold caches and is not counted.

    Args:
        participants: What to run.
        seconds: Start no round after this time, but make `min_rounds`.
        min_rounds: At least so many.
        max_rounds: At most so many.
        device: `cpu` or `cuda`, whose end is then waited for.
        clock: In s.
    """
    end = clock() + seconds
    once = [stopwatch(run, device, clock) for run in participants]
    repeats = [max(1, min(20, round(TURN_SECONDS[device] / max(t, 1e-9)))) for t in once]
    turns = [Turns() for _ in participants]
    order = list(range(len(participants)))
    for done in range(max_rounds):
        if done >= min_rounds and clock() >= end:
            break
        for i in order:
            runs = [stopwatch(participants[i], device, clock) for _ in range(repeats[i] + (repeats[i] > 1))]
            turns[i].rounds.append(runs[1:] if repeats[i] > 1 else runs)
        order.reverse()
    return turns


@dataclass(frozen=True)
class Spread:
    """A ratio of medians, and median and quartiles of the ratios that the single rounds gave."""

    ratio: float
    paired: float
    low: float
    high: float
    rounds: int


def ratio(first: Turns, second: Turns) -> Spread:
    """The first's median over the second's, with the spread over the rounds."""
    each = [a / b for a, b in zip(first.medians, second.medians, strict=True)]
    low, middle, high = (percentile(each, q) for q in (25, 50, 75))
    return Spread(first.median / second.median, middle, low, high, len(each))


def best_chunk(
    batch: int,
    per_image: Callable[[int], float],
    *,
    chunks: Sequence[int] = (),
    worse: float = 1.1,
    give_up: Callable[[], bool] = lambda: False,
) -> tuple[int, dict[int, float]]:
    """The number of pictures at a time with which a batch is computed fastest.

    A CPU's cache holds the maps of a few pictures, not of many. Chunks are tried from the smallest upwards, until one
    is clearly worse than the best before it.

    Args:
        batch: Pictures in all.
        per_image: Seconds for each picture in chunks of so many.
        chunks: What to try, as far as it divides the batch; by default the powers of two and the batch itself.
        worse: A chunk that takes longer than the best by this factor ends the search.
        give_up: Ends it too.

    Returns:
        The best chunk, and the seconds for each picture of all that were tried.
    """
    powers = [1 << i for i in range(batch.bit_length())]
    fitting = sorted(c for c in chunks or {*powers, batch} if batch % c == 0) or [batch]
    tried: dict[int, float] = {}
    for chunk in fitting:
        tried[chunk] = per_image(chunk)
        if tried[chunk] > worse * min(tried.values()) or give_up():
            break
    return min(tried, key=lambda c: tried[c]), tried


def ceiling(precision: str, device: str = "cpu") -> tuple[Callable[[], object], float] | None:
    """A square matrix product in this precision, and its FLOPs: what the machine reaches where nothing else is done.

    None for int8, which PyTorch has no comparable product for.
    """
    dtypes = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision not in dtypes:
        return None
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtypes[precision]) for _ in range(2))

    def product() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return product, 2.0 * side**3
