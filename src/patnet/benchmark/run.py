"""The whole measurement: candidates are prepared, the fastest of each model found, and models compared in turns."""

import copy
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..deploy.runtimes import prepare
from ..errors import InputError
from .candidates import (
    MEMORY_FORMATS,
    Candidate,
    Options,
    Setting,
    build,
    calibration_pictures,
    channels_of,
    check_sizes,
    count,
    expand,
)
from .memory import peak_of
from .published import partners, published
from .report import Comparison, Measurement, Result, machine
from .timing import Turns, best_chunk, ceiling, in_turns, ratio, stopwatch, use_threads

__all__ = ["in_precision", "measure"]

Say = Callable[[str], None]

MIB = 2**20

# A candidate this much slower than the fastest in its first runs takes no part in the trial.
HOPELESS = 1.5

# What a model takes on a GPU without compiling, in s, so that there is time for all of them.
EAGER_SECONDS = 25.0

# What preparing a candidate takes, in s, before one has been prepared.
GUESS = {"eager": 1.0, "onnxruntime": 10.0, "openvino": 5.0, "compile": 40.0}


@dataclass
class Prepared:
    """A candidate that can be run, and what was measured of it.

    Attributes:
        run: Computes a whole batch, in chunks.
        quick: Seconds that the fastest of its first runs took.
        measured: What the report says of it.
    """

    candidate: Candidate
    run: Callable[[], object]
    quick: float
    measured: Measurement


@dataclass
class Pace:
    """How much is done and how much time that leaves."""

    total: float
    minutes: float | None
    start: float = field(default_factory=time.monotonic)
    done: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def end(self) -> float:
        """Second after the start by which all shall be done."""
        return math.inf if self.minutes is None else 60 * self.minutes

    def share(self, weight: float) -> float:
        """The second after the start until which work of this weight may go on, so that the rest has its time too."""
        left = max(self.total - self.done, weight)
        return self.elapsed + max(0.0, self.end - self.elapsed) * weight / left

    def __str__(self) -> str:
        left = self.elapsed * (self.total / self.done - 1) if self.done else math.inf
        left = min(left, self.end - self.elapsed)
        minutes = f"{self.elapsed / 60:4.1f} min" + ("" if left == math.inf else f", {max(0, left) / 60:.1f} min left")
        return f"[{minutes}]"


def measure(options: Options, say: Say = lambda line: None, command: str = "") -> Result:
    """Measure what the options name.

    After Ctrl-C, and after `options.minutes`, the result holds what was measured so far and says that it is incomplete.

    Raises:
        InputError: If the options do not fit, or nothing could be measured.
    """
    return _Bench(options.checked(), say, command).measure()


class _Bench:
    def __init__(self, options: Options, say: Say, command: str) -> None:
        self.options = options
        self.say = say
        self.result = Result(command=command, machine=machine(options), settings=options)
        self.preparing = dict(GUESS)
        self.calibration: dict[tuple[int, int], Tensor] = {}
        self.pace = Pace(0.0, options.minutes)

    def measure(self) -> Result:
        """All groups of models, one after the other."""
        options = self.options
        self.say(f"counting {len(options.models)} models")
        self.gmacs = check_sizes(options)
        groups = partners(options.models)
        if options.device == "cuda":
            # The PATNet whose accuracy is published comes first, while there is time to compile.
            groups.sort(key=lambda group: group[0] not in published())
        self.pace.total = sum(self._weight(model) for model in options.models)
        try:
            for first, others in groups:
                self._group(first, others)
            if options.memory and options.device == "cpu":
                self._memory()
        except KeyboardInterrupt:
            self.result.incomplete = "interrupted"
        if not self.result.incomplete and self.result.left_out:
            self.result.incomplete = "not all was measured, see what was left out"
        self.result.seconds = round(self.pace.elapsed, 1)
        if not self.result.rows and not self.result.incomplete.startswith("interrupted"):
            raise InputError("nothing could be measured: " + "; ".join(self.result.left_out[:3]))
        return self.result

    def _weight(self, model: str) -> float:
        """A model's part of the whole time, roughly."""
        return (8.0 if self.options.device == "cpu" else 30.0) + self.gmacs[model]

    def _group(self, first: str, others: list[str]) -> None:
        until = self.pace.share(sum(self._weight(model) for model in [first, *others]))
        if self.options.device == "cuda":
            later = self.pace.total - self.pace.done - sum(self._weight(model) for model in [first, *others])
            models = round(later / self.pace.total * len(self.options.models))
            until = max(until, self.pace.end - EAGER_SECONDS * models)
        kinds: dict[Setting, set] = {}
        hub = self._model(first, until, kinds, members=1 + len(others))
        for model in others:
            fastest = self._model(model, until, kinds, members=0)
            for setting, ours in hub.items():
                if setting in fastest:
                    self._compare("models", ours, fastest[setting])
            self._alone(fastest)
            del fastest
            gc.collect()
        self._alone(hub)

    def _key(self, setting: Setting) -> Setting:
        """Under which settings of different models are compared: each at its own size where none was asked for."""
        return setting if self.options.size else replace(setting, size=0)

    def _model(self, model: str, until: float, kinds: dict[Setting, set], members: int) -> dict[Setting, Prepared]:
        """The fastest candidate of a model in each setting, and the ratios between its own candidates.

        `kinds` holds what the first model of a group was measured in; the others are measured in the same, so that
        no one is faster for having had more time.
        """
        networks: dict[str, nn.Module] = {}
        fastest: dict[Setting, Prepared] = {}
        per_image = 0.0
        expanded = expand(model, self.options)
        before = self.pace.done
        for i, (setting, candidates) in enumerate(expanded.items()):
            key = self._key(setting)
            self.pace.done = before + self._weight(model) * i / len(expanded)
            if self.pace.elapsed > self.pace.end and self.result.measurements:
                self._leave_out(f"{model} at {setting}", "the time was up")
                continue
            if not members and key not in kinds:
                continue
            if self.options.frugal and self.options.device == "cpu" and setting.batch > 1 and fastest:
                # Larger batches are tried in what was fastest for one picture.
                known = next(iter(fastest.values())).candidate.kind
                candidates = [c for c in candidates if c.kind == known] or candidates
            elif not members:
                candidates = [c for c in candidates if c.kind in kinds.get(key, ())]
            # Finding the chunk, the trial and the comparison take about a dozen batches.
            batches = 12 * per_image * setting.batch if setting.batch > 1 else 0.0
            prepared: list[Prepared] = []
            with use_threads(setting.threads):
                for candidate in candidates:
                    needed = (self.preparing[candidate.runtime] + batches) * max(members, 1)
                    if members and (prepared or batches) and self.pace.elapsed + needed > until:
                        self._leave_out(f"{candidate} at {setting}", "it would have taken too long")
                        continue
                    ready = self._prepare(candidate, networks, until)
                    if ready:
                        prepared.append(ready)
                        kinds.setdefault(key, set()).add(candidate.kind)
                if not prepared:
                    continue
                fastest[key] = best = self._trial(prepared)
                per_image = per_image or best.quick / setting.batch
                plain = next((p for p in prepared if p.candidate.plain), None)
                if plain and plain is not best and setting.batch == self.options.batch[0]:
                    self._compare("gain", best, plain)
                del prepared
        self.pace.done = before + self._weight(model)
        networks.clear()
        self._within(fastest)
        gc.collect()
        return fastest

    def _within(self, fastest: dict[Setting, Prepared]) -> None:
        """A model against itself: the other precisions over the first, the larger pictures over the smallest."""
        prepared = {p.candidate.setting: p for p in fastest.values()}
        for setting, one in prepared.items():
            precise = replace(setting, precision="fp32")
            if setting.precision != "fp32" and precise in prepared:
                self._compare("precision", one, prepared[precise])
            small = replace(setting, size=min(s.size for s in prepared))
            if setting != small and small in prepared:
                self._compare("size", one, prepared[small])

    def _leave_out(self, what: str, why: str) -> None:
        self.result.left_out.append(f"{what}: {why}")
        self.say(f"{self.pace} {what}: left out, {why}")

    def _pictures(self, setting: Setting, channels: int, layout: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.options.seed)
        pictures = torch.randn(setting.batch, channels, setting.size, setting.size, generator=generator)
        return pictures.to(self.options.device).contiguous(memory_format=MEMORY_FORMATS[layout])

    def _calibrate(self, setting: Setting, channels: int) -> Tensor | None:
        if setting.precision != "int8":
            return None
        key = channels, setting.size
        if key not in self.calibration:
            found = calibration_pictures(self.options.calibration, *key, self.options.seed)
            self.calibration[key], self.result.calibration = found
        return self.calibration[key]

    def _prepare(self, candidate: Candidate, networks: dict[str, nn.Module], until: float) -> Prepared | None:
        setting, cuda = candidate.setting, self.options.device == "cuda"
        self.say(f"{self.pace} {candidate}: preparing, {setting}")
        start = time.monotonic()
        try:
            if candidate.form not in networks:
                networks[candidate.form] = build(candidate.model, candidate.form, seed=self.options.seed)
            network = networks[candidate.form]
            parameters, gmacs = count(network, setting.size)
            channels = channels_of(network)
            pictures = self._pictures(setting, channels, candidate.memory_format)
            before = torch.cuda.memory_allocated() if cuda else 0
            if cuda or candidate.memory_format != "contiguous":
                network = copy.deepcopy(network).to(self.options.device)
                network = network.to(memory_format=MEMORY_FORMATS[candidate.memory_format])
            calls: dict[int, Callable[[Tensor], Tensor]] = {}
            quick: dict[int, float] = {}

            def try_chunk(chunk: int) -> float:
                part = pictures[:chunk]
                with in_precision(setting.precision):
                    calls[chunk] = prepare(
                        network,
                        part,
                        runtime=candidate.runtime,
                        precision=setting.precision,
                        threads=setting.threads,
                        calibration=self._calibrate(setting, channels),
                    )
                    for _ in range(3 if cuda else 1):
                        calls[chunk](part)
                    if cuda and candidate.runtime == "eager":
                        torch.cuda.reset_peak_memory_stats()  # without what choosing the kernels took
                    end = time.monotonic() + min(0.1, self.options.seconds / 20)
                    runs = [stopwatch(lambda: calls[chunk](part), self.options.device)]
                    while time.monotonic() < end:
                        runs.append(stopwatch(lambda: calls[chunk](part), self.options.device))
                quick[chunk] = min(runs) / chunk
                for other in [c for c in calls if quick[c] > min(quick.values())]:
                    del calls[other]
                return quick[chunk]

            if cuda:
                torch.cuda.reset_peak_memory_stats()
                chunk = setting.batch
                try_chunk(chunk)
            else:
                chunk, _ = best_chunk(
                    setting.batch,
                    try_chunk,
                    chunks=self.options.chunks,
                    give_up=lambda: self.pace.elapsed > min(until, self.pace.end),
                )
        except torch.cuda.OutOfMemoryError:
            self._leave_out(f"{candidate} at {setting}", "the GPU's memory is too small")
            return None
        except Exception as error:  # exporters and compilers raise their own, and the other candidates can go on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._leave_out(f"{candidate} at {setting}", reason)
            return None
        self.preparing[candidate.runtime] = time.monotonic() - start
        call, parts = calls[chunk], [part.clone() for part in pictures.split(chunk)]

        def run() -> None:
            with in_precision(setting.precision):
                for part in parts:
                    call(part)

        measured = Measurement(candidate, chunk, parameters, gmacs, self.preparing[candidate.runtime])
        if cuda:
            measured.peak_mib = (torch.cuda.max_memory_allocated() - before) / MIB
        seconds = quick[chunk] * setting.batch
        measured.trial.rounds.append([seconds])
        self.result.measurements.append(measured)
        return Prepared(candidate, run, seconds, measured)

    def _turns(self, participants: list[Prepared], seconds: float, min_rounds: int) -> list[Turns]:
        """Turns of the participants, and of the matrix product where all are of one precision."""
        settings = {p.candidate.setting.precision for p in participants}
        top = ceiling(settings.pop(), self.options.device) if len(settings) == 1 else None
        runs: list[Callable[[], object]] = [p.run for p in participants]
        with use_threads(participants[0].candidate.setting.threads):
            if top:
                runs.append(top[0])
                top[0]()
            turns = in_turns(runs, seconds=seconds, min_rounds=min_rounds, device=self.options.device)
        if top:
            for p in participants:
                p.measured.ceilings.append(top[1] / turns[-1].median)
        return turns[: len(participants)]

    def _trial(self, prepared: list[Prepared]) -> Prepared:
        """The fastest of a model's candidates, in a short round of turns."""
        hopeful = [p for p in prepared if p.quick <= HOPELESS * min(q.quick for q in prepared)]
        slow = sum(p.quick for p in hopeful) > 1.0
        turns = self._turns(hopeful, self.options.seconds / 4, min_rounds=1 if slow else 3)
        for p, turn in zip(hopeful, turns, strict=True):
            p.measured.trial = turn
        best = min(hopeful, key=lambda p: p.measured.trial.median)
        best.measured.fastest = True
        ms = 1e3 * best.measured.trial.median
        chunks = f" in chunks of {best.measured.chunk}" if best.measured.chunk < best.candidate.setting.batch else ""
        self.say(f"{self.pace} {best.candidate}: {ms:.2f} ms, {best.candidate.setting}{chunks}, the fastest")
        return best

    def _compare(self, kind: str, first: Prepared, second: Prepared) -> None:
        slow = first.quick + second.quick > self.options.seconds
        turns = self._turns([first, second], self.options.seconds, min_rounds=3 if slow else 5)
        for p, turn in zip((first, second), turns, strict=True):
            p.measured.turns.append(turn)
        comparison = Comparison(kind, first.measured, second.measured, ratio(*turns))
        self.result.comparisons.append(comparison)
        self.say(f"{self.pace} {comparison}")

    def _alone(self, fastest: dict[Setting, Prepared]) -> None:
        """Measure those that took part in no comparison."""
        for p in fastest.values():
            if not p.measured.turns:
                slow = p.quick > self.options.seconds / 2
                p.measured.turns += self._turns([p], self.options.seconds / 2, min_rounds=3 if slow else 5)

    def _memory(self) -> None:
        for measured in self.result.measurements:
            if measured.fastest:
                self.say(f"{self.pace} {measured.candidate}: peak memory in a process of its own")
                measured.peak_mib = peak_of(measured.candidate, measured.chunk, self.options.seed)


@contextmanager
def in_precision(precision: str) -> Iterator[None]:
    """TF32 where it was asked for and nowhere else; PyTorch's own default is to use it in convolutions."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
