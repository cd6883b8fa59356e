"""The measurement: what to measure, and the candidates of a group of models measured in the same rounds."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from ..deploy import BACKENDS, find_backend, prepare
from ..deploy.backend import computed_in
from ..deploy.pytorch import Eager
from ..errors import InputError, nearest, one_line
from ..train.config import PositiveFloat, PositiveInt
from .networks import build, count, random_images, usual_size
from .report import machine
from .timing import Timing, interleave, ratio, use_threads

Say = Callable[[str], None]

FAMILY = [f"{family}_{size}" for size in ("t0", "t1", "t2", "s", "m", "l") for family in ("patnet", "fasternet")]
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(kw_only=True)
class Options:
    """What to measure.

    Args:
        models: Models of timm, run directories and checkpoints; default: the six PATNets and FasterNets. A PATNet is
            compared with the FasterNet of its size, other models with the last one.
        backends: eager, onnx, openvino, executorch, torch, compile, aotinductor, triton; default: the first four, on a
            GPU eager, triton and compile, where installed.
        forms: fused, unfused; default: fused, in eager unfused too.
        precision: Precisions of the backends; default: fp32, on a GPU fp16.
        batch_size: Images per call; default: 1, on a GPU 1 and 128.
        img_size: Sides of the images in px; default: each model's usual one.
        memory_format: contiguous, channels_last (eager and compile only).
        threads: CPU threads.
        device: Device to measure on.
        seconds: Duration of the rounds in which a group of models is measured; at least ten rounds.
        minutes: Time limit; what there is no time for is listed.
    """

    models: list[str] = field(default_factory=list)
    backends: list[str] = field(default_factory=list)
    forms: list[Literal["fused", "unfused"]] = field(default_factory=list)
    precision: list[str] = field(default_factory=list)
    batch_size: list[PositiveInt] = field(default_factory=list)
    img_size: list[PositiveInt] = field(default_factory=list)
    memory_format: list[Literal["contiguous", "channels_last"]] = field(default_factory=lambda: ["contiguous"])
    threads: list[PositiveInt] = field(default_factory=lambda: [1])
    device: Literal["cpu", "cuda"] = "cpu"
    seconds: PositiveFloat = 8.0
    minutes: PositiveFloat | None = None

    def resolved(self) -> "Options":
        """The options with the defaults filled in.

        Raises:
            InputError: If something cannot be measured.
        """
        gpu = self.device == "cuda"
        if gpu and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no GPU; leave it out to measure on the CPU")
        usual = [backend for backend in BACKENDS.values() if self.device in backend.bench_on]
        found = replace(
            self,
            models=self.models or FAMILY,
            backends=self.backends or [b.name for b in usual if all(map(find_spec, b.packages))],
            precision=self.precision or ["fp16" if gpu else "fp32"],
            batch_size=self.batch_size or ([1, 128] if gpu else [1]),
        )
        for model in found.models:
            usual_size(model)
        for name in found.backends:
            backend = find_backend(name)
            backend.check(backend.precisions[0])
            if self.device not in backend.devices:
                raise InputError(f"--backends {name}: runs on {' or '.join(backend.devices)}, not on {self.device}")
        known = list(dict.fromkeys(p for name in found.backends for p in BACKENDS[name].precisions))
        for precision in set(found.precision) - set(known):
            hint = f"{nearest(precision, known)}; choose from {', '.join(known)}"
            raise InputError(f"--precision {precision}: not available in {', '.join(found.backends)}{hint}")
        cores = os.cpu_count() or 1
        if max(self.threads) > cores:
            raise InputError(f"--threads {max(self.threads)}: this machine has {cores} cores")
        for name in self.backends:
            precisions, forms = BACKENDS[name].precisions, BACKENDS[name].forms
            for option, asked, has in (("precision", found.precision, precisions), ("forms", found.forms, forms)):
                if asked and not {*asked} & {*has}:
                    raise InputError(f"--backends {name}: has none of --{option} {' '.join(asked)}; leave it out")
        return found

    def ways(self) -> Iterator[tuple[str, str, str, str]]:
        """Backend, form, precision and memory format of the candidates, the quickly prepared ones first."""
        for name in sorted(self.backends, key=list(BACKENDS).index):
            backend = BACKENDS[name]
            forms = self.forms or (["fused", "unfused"] if type(backend) is Eager else ["fused"])
            forms = [form for form in forms if form in backend.forms]
            formats = self.memory_format if backend.any_layout else ["contiguous"]
            precisions = [precision for precision in self.precision if precision in backend.precisions]
            yield from product([name], forms, precisions, formats)


def group_by_size(models: Sequence[str]) -> list[list[str]]:
    """The models in groups to compare: each PATNet with the FasterNet of its size, and the others."""
    twins = {model: model.replace("patnet_", "fasternet_") for model in models if model.startswith("patnet_")}
    found = [[model, twin] for model, twin in twins.items() if twin in models]
    paired = {model for pair in found for model in pair}
    others = [model for model in models if model not in paired]
    return [*found, others] if others else found


@dataclass(frozen=True)
class Candidate:
    """A network in one of the ways to run it; the fields are the first columns of its row in the result."""

    model: str
    backend: str
    form: str
    precision: str
    memory_format: str
    img_size: int
    batch_size: int
    threads: int

    @property
    def way(self) -> tuple[str, ...]:
        """What can be chosen to make a model faster."""
        return self.backend, self.form, self.memory_format

    @property
    def title(self) -> str:
        """Title of the backend, form if it is unfused, and memory format if it is not contiguous."""
        form = ", unfused" if self.form == "unfused" else ""
        layout = f", {self.memory_format}" if self.memory_format != "contiguous" else ""
        return BACKENDS[self.backend].title + form + layout

    def __str__(self) -> str:
        size = f"{self.img_size} px, batch size {self.batch_size}"
        return f"{self.model}, {', '.join(self.way)}, {self.precision}, {size}"


@dataclass
class _Prepared:
    """A candidate, what computes a batch of it, the columns of its row that are known already, and its runs."""

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
    ways = list(options.ways())
    groups = groups or group_by_size(options.models)
    settings = list(product(groups, options.img_size or [0], options.batch_size, options.threads))
    bench = _Bench(options, sum(len(models) for models, *_ in settings) * len(ways), say)
    because = None
    try:
        for i, (models, size, batch_size, threads) in enumerate(settings):
            candidates = [
                [Candidate(model, *way, size or usual_size(model), batch_size, threads) for model in models]
                for way in ways
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
        self.options, self.candidates, self._say = options, candidates, say
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.done = 0
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return math.inf if self.options.minutes is None else max(0.0, 60 * self.options.minutes - self.elapsed)

    def say(self, line: str) -> None:
        """Print a line of progress with the time left, from the mean duration of the candidates so far."""
        left = min(self.left, self.elapsed * (self.candidates / self.done - 1) if self.done else math.inf)
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
        prepared: list[_Prepared] = []
        until = self.elapsed + share * self.left - self.options.seconds
        for of_way in candidates:
            time_is_up = bool(prepared) and self.elapsed > until
            for candidate in of_way:  # of all models, so that none seems slower because there was less time for it
                if time_is_up:
                    self.leave_out(candidate, "the time was up")
                else:
                    self.say(f"{candidate}: preparing")
                    try:
                        prepared.append(self._prepare(candidate, networks))
                    except Exception as error:  # exporters and compilers raise their own; others can be measured
                        self.leave_out(candidate, one_line(error))
                self.done += 1
        if prepared:
            self.say(f"measuring {len(prepared)} candidates")
            calls, timings = [p.call for p in prepared], [p.timing for p in prepared]
            try:
                interleave(calls, timings, seconds=self.options.seconds, min_rounds=10, device=self.options.device)
            finally:
                self.rows += _rows(prepared, [candidate.model for candidate in candidates[0]])

    def _prepare(self, c: Candidate, networks: dict[Any, Any]) -> _Prepared:
        """The candidate, prepared and run once."""
        device, layout = self.options.device, MEMORY_FORMATS[c.memory_format]
        start = time.monotonic()
        key = c.model, c.form, c.memory_format
        if key not in networks:
            network = build(c.model, unfused=c.form == "unfused")
            counts = count(network, c.img_size)
            networks[key] = network.to(device).to(memory_format=layout), *counts
        network, parameters, gmacs = networks[key]
        images = random_images(network, c.batch_size, c.img_size).to(device).contiguous(memory_format=layout)
        calibration = random_images(network, max(8, c.batch_size), c.img_size)
        options: dict[str, Any] = {"backend": c.backend, "precision": c.precision, "threads": c.threads}
        run = prepare(network, images, calibration=calibration, **options)
        for _ in range(3 if device == "cuda" else 1):
            run(images)
        known = {
            "computed_in": computed_in(run) or None,
            "parameters": parameters,
            "gmacs": round(gmacs, 4),
            "preparing_s": round(time.monotonic() - start, 1),
        }
        return _Prepared(c, lambda: run(images), known)


def _rows(prepared: Sequence[_Prepared], models: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of the models that were measured in the same rounds, the fastest first; compared in equal precision."""
    measured = sorted((p for p in prepared if p.timing.rounds), key=lambda p: p.timing.median)
    baseline = models[-1]
    rows = []
    for p in sorted(measured, key=lambda p: models.index(p.candidate.model)):
        c, median = p.candidate, p.timing.median
        same_precision = [o for o in measured if o.candidate.precision == c.precision]
        own = [o for o in same_precision if o.candidate.model == c.model]
        others = [o for o in same_precision if o.candidate.model == baseline != c.model]
        same_way = [o for o in others if o.candidate.way == c.way]
        fastest = p is own[0]
        following = own[1] if fastest and own[1:] else None
        rows.append(
            {
                **asdict(c),
                "way": c.title,
                "fastest": fastest,
                "median_ms": round(1e3 * median, 4),
                "p95_ms": round(1e3 * float(np.percentile(p.timing.runs, 95)), 4),
                "runs": len(p.timing.runs),
                "rounds": len(p.timing.rounds),
                "images_per_s": round(c.batch_size / median, 3),
                "next": following.candidate.title if following else None,
                "next_ratio": round(following.timing.median / median, 4) if following else None,
                "baseline": baseline if others else None,
                "ratio_fastest": ratio(p.timing, others[0].timing) if fastest and others else None,
                "ratio_same_way": ratio(p.timing, same_way[0].timing) if same_way else None,
                **p.known,
            }
        )
    return rows
