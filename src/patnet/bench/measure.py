"""The measurement: the candidates of a group of models are prepared, and measured in the same rounds."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import numpy as np

from ..deploy import BACKENDS, prepare
from ..deploy.backend import computed_in, one_line
from ..errors import InputError
from ..models import PUBLISHED
from .networks import build, count, random_images, usual_size
from .options import MEMORY_FORMATS, Candidate, Options, group_by_size
from .report import machine
from .timing import Timing, interleave, ratio, use_threads

__all__ = ["Prepared", "measure"]

Say = Callable[[str], None]


@dataclass
class Prepared:
    """A candidate that can be measured.

    Attributes:
        candidate: The candidate.
        call: Computes a batch.
        known: Columns of its row that are known before the measurement.
        timing: Its runs.
    """

    candidate: Candidate
    call: Callable[[], object]
    known: dict[str, Any]
    timing: Timing = field(default_factory=Timing)


def measure(
    options: Options, *, groups: Sequence[Sequence[str]] = (), say: Say = lambda line: None, command: str = ""
) -> dict[str, Any]:
    """Measure models in groups; all candidates of a group are measured in the same rounds.

    After Ctrl-C, and after `options.minutes`, the result holds what was measured until then.

    Args:
        options: What to measure.
        groups: Models to compare with the last of their group, by default `group_by_size(options.models)`.
        say: Gets lines of progress.
        command: The command to name in the result.

    Returns:
        `rows`, one for each candidate; `left_out`, what could not be measured and why; `complete` and
        `incomplete_because`; `machine`, `command` and `seconds`.

    Raises:
        InputError: If the options do not fit, or nothing could be measured.
    """
    options = options.resolved()
    groups = groups or group_by_size(options.models)
    settings = list(product(groups, options.img_size or [0], options.batch_size, options.threads))
    bench = _Bench(options, sum(len(models) for models, *_ in settings) * len(list(options.ways())), say)
    because = None
    try:
        for i, (models, size, batch_size, threads) in enumerate(settings):
            candidates = [
                [Candidate(model, *way, size or usual_size(model), batch_size, threads) for model in models]
                for way in options.ways()
            ]
            with use_threads(threads):
                bench.measure_group(candidates, share=1 / (len(settings) - i))
    except KeyboardInterrupt:
        because = "interrupted"
    if bench.left_out and not because:
        because = "not everything was measured, see what was left out"
        if not bench.rows:
            raise InputError("nothing could be measured: " + "; ".join(bench.left_out[:3]))
    return {
        "complete": because is None,
        "incomplete_because": because,
        "command": command,
        "machine": machine(options.device),
        "seconds": round(bench.elapsed, 1),
        "rows": bench.rows,
        "left_out": bench.left_out,
    }


class _Bench:
    """The state of a measurement: the rows so far, and how much is done."""

    def __init__(self, options: Options, candidates: int, say: Say) -> None:
        self.options = options
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._say = say
        self._candidates, self._done = candidates, 0
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return math.inf if self.options.minutes is None else max(0.0, 60 * self.options.minutes - self.elapsed)

    def say(self, line: str) -> None:
        """Print a line of progress with the time left, from the mean duration of the candidates so far."""
        left = min(self.left, self.elapsed * (self._candidates / self._done - 1) if self._done else math.inf)
        known = f", about {left / 60:.1f} min left" if left < math.inf else ""
        self._say(f"[{self.elapsed / 60:.1f} min{known}] {line}")

    def leave_out(self, candidate: Candidate, reason: str) -> None:
        """Record that a candidate is not measured."""
        self.left_out.append(f"{candidate}: {reason}")
        self.say(f"{candidate}: left out, {reason}")

    def measure_group(self, candidates: Sequence[Sequence[Candidate]], share: float) -> None:
        """Prepare the candidates of a group, measure them in the same rounds, and add their rows.

        Args:
            candidates: For each way to run a network the candidates of all models.
            share: Share of the time left that the group may take.
        """
        networks: dict[Any, Any] = {}
        prepared: list[Prepared] = []
        until = self.elapsed + share * self.left - self.options.seconds
        for of_way in candidates:
            time_is_up = bool(prepared) and self.elapsed > until
            for candidate in of_way:  # of all models, so that none seems slower because there was less time for it
                if time_is_up:
                    self.leave_out(candidate, "the time was up")
                else:
                    self.say(f"{candidate}: preparing")
                    prepared += self._prepare(candidate, networks)
                self._done += 1
        if prepared:
            self.say(f"measuring {len(prepared)} candidates")
            calls, timings = [p.call for p in prepared], [p.timing for p in prepared]
            try:
                interleave(calls, timings, seconds=self.options.seconds, min_rounds=3, device=self.options.device)
            finally:
                self.rows += _rows(prepared, [candidate.model for candidate in candidates[0]])

    def _prepare(self, c: Candidate, networks: dict[Any, Any]) -> list[Prepared]:
        """The candidate, prepared and run once; nothing if it cannot be run."""
        device, layout = self.options.device, MEMORY_FORMATS[c.memory_format]
        start = time.monotonic()
        try:
            key = c.model, c.form, c.memory_format
            if key not in networks:
                network = build(c.model, unfused=c.form == "unfused")
                counts = count(network, c.img_size)
                networks[key] = network.to(device).to(memory_format=layout), *counts
            network, parameters, gmacs = networks[key]
            images = random_images(network, c.batch_size, c.img_size).to(device).contiguous(memory_format=layout)
            calibration = random_images(network, max(8, c.batch_size), c.img_size)
            run = prepare(
                network, images, backend=c.backend, precision=c.precision, threads=c.threads, calibration=calibration
            )
            for _ in range(3 if device == "cuda" else 1):
                run(images)
        except Exception as error:  # exporters and compilers raise their own, and the other candidates can be measured
            self.leave_out(c, one_line(error))
            return []
        known = {
            "computed_in": computed_in(run) or None,
            "parameters": parameters,
            "gmacs": round(gmacs, 4),
            "top1": PUBLISHED.get(c.model) if c.img_size == 224 else None,
            "preparing_s": round(time.monotonic() - start, 1),
        }
        return [Prepared(c, lambda: run(images), known)]


def _way(c: Candidate) -> str:
    """Title of the backend, form if it is unfused, and memory format if it is not contiguous."""
    form = ", unfused" if c.form == "unfused" else ""
    return BACKENDS[c.backend].title + form + (f", {c.memory_format}" if c.memory_format != "contiguous" else "")


def _rows(prepared: Sequence[Prepared], models: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the models that were measured in the same rounds, the fastest first; compared in equal precision."""
    measured = sorted((p for p in prepared if p.timing.rounds), key=lambda p: p.timing.median)
    baseline = models[-1]
    rows = []
    for p in sorted(measured, key=lambda p: models.index(p.candidate.model)):
        c, median = p.candidate, p.timing.median
        own = [o for o in measured if (o.candidate.model, o.candidate.precision) == (c.model, c.precision)]
        others = [o for o in measured if (o.candidate.model, o.candidate.precision) == (baseline, c.precision)]
        others = others if c.model != baseline else []
        same_way = [o for o in others if o.candidate.way == c.way]
        fastest, after = p is own[0], own[1:]
        rows.append(
            {
                **asdict(c),
                "way": _way(c),
                "fastest": fastest,
                "median_ms": round(1e3 * median, 4),
                "p95_ms": round(1e3 * float(np.percentile(p.timing.runs, 95)), 4),
                "runs": len(p.timing.runs),
                "rounds": len(p.timing.rounds),
                "images_per_s": round(c.batch_size / median, 3),
                "next": _way(after[0].candidate) if fastest and after else None,
                "next_ratio": round(after[0].timing.median / median, 4) if fastest and after else None,
                "baseline": baseline if others else None,
                "ratio_fastest": ratio(p.timing, others[0].timing) if fastest and others else None,
                "ratio_same_way": ratio(p.timing, same_way[0].timing) if same_way else None,
                **p.known,
            }
        )
    return rows
