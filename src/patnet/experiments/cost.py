"""What the configurations cost: parameters, GMACs, and times that are measured in turns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..benchmark.candidates import Options, count, fold_norms
from ..benchmark.report import machine
from ..benchmark.run import in_precision
from ..benchmark.timing import Turns, in_turns, percentile, ratio, use_threads
from ..deploy import fuse
from ..deploy.runtimes import RUNTIMES, prepare
from ..errors import InputError, nearest
from .settings import Variant, create

__all__ = ["CostOptions", "match_widths", "measure_costs"]

WIDTH_STEP = 2  # channels; with an odd width the heads would not divide those of the last stage


@dataclass(kw_only=True)
class CostOptions:
    """How costs are measured.

    Attributes:
        runtime: Name in `patnet.deploy.runtimes.RUNTIMES`.
        sizes: Sides of the pictures in px; the first is measured in batches too.
        batch: Pictures in a batch.
        threads: CPU threads.
        device: `cpu` or `cuda`.
        seconds: That all measurements take, roughly.
    """

    runtime: str = "eager"
    sizes: Sequence[int] = (224,)
    batch: int = 16
    threads: int = 1
    device: str = "cpu"
    seconds: float = 30.0

    def check(self) -> None:
        """Check the runtime and the numbers.

        Raises:
            InputError: For the first that cannot be used.
        """
        if self.runtime not in RUNTIMES:
            raise InputError(
                f"--runtime {self.runtime}: unknown{nearest(self.runtime, RUNTIMES)}; there are {', '.join(RUNTIMES)}"
            )
        for option, value, least in (
            ("cost_sizes", min(self.sizes), 32),
            ("cost_batch", self.batch, 1),
            ("cost_threads", self.threads, 1),
        ):
            if value < least:
                raise InputError(f"--{option} {value}: must be at least {least}")
        if not 0 < self.seconds < math.inf:
            raise InputError(f"--cost_seconds {self.seconds}: must be a number above 0")


def _prepared(variants: Mapping[str, Variant], size: int, batch: int, options: CostOptions) -> list[Callable]:
    """A call of each fused network that has run before, on pictures of noise."""
    torch.manual_seed(0)
    pictures = torch.randn(batch, 3, size, size, device=options.device)
    calls: list[Callable[[], object]] = []
    for name, variant in variants.items():
        network = fold_norms(fuse(create(variant))).to(options.device)
        try:
            call = prepare(network, pictures, runtime=options.runtime, threads=options.threads)
            call(pictures)
        except InputError:
            raise
        except Exception as error:  # each runtime and network raises its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"configuration {name}: does not run at {size} px in {options.runtime} ({reason})"
            ) from error
        calls.append(partial(call, pictures))
    return calls


def _turns(calls: Sequence[Callable], options: CostOptions, seconds: float) -> list[Turns]:
    with use_threads(options.threads), in_precision("fp32"):
        return in_turns(calls, seconds=seconds, min_rounds=3, device=options.device)


def match_widths(
    variants: Mapping[str, Variant],
    baseline: str,
    options: CostOptions,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Variant]:
    """The variants with the `embed_dim` with which each is as fast as the baseline, to the nearest that there is.

    Batches of the first size are measured, and the width is found by bisection between half and twice the baseline's.

    Raises:
        InputError: If no width can be built.
    """
    reference = {baseline: variants[baseline]}
    base = create(variants[baseline], device="meta").feature_info[0]["num_chs"]
    matched = dict(variants)
    for name, variant in variants.items():
        if name == baseline:
            continue
        widths = []
        for width in range(max(WIDTH_STEP, base // 2), 2 * base + 1, WIDTH_STEP):
            try:
                create(variant._replace(model_args={**variant.model_args, "embed_dim": width}), device="meta")
            except InputError:
                continue
            widths.append(width)
        if not widths:
            raise InputError(f"configuration {name}: no width from {base // 2} to {2 * base} can be built")
        tried: dict[int, float] = {}
        low, high = 0, len(widths) - 1
        while low <= high:
            middle = (low + high) // 2
            width = widths[middle]
            wider = variant._replace(model_args={**variant.model_args, "embed_dim": width})
            calls = _prepared({**reference, name: wider}, options.sizes[0], options.batch, options)
            ours, theirs = _turns(calls, options, options.seconds / 45)
            tried[width] = ratio(theirs, ours).paired
            say(f"{name} of width {width}: {tried[width]:.2f} times the baseline's time")
            low, high = (middle + 1, high) if tried[width] < 1 else (low, middle - 1)
        best = min(tried, key=lambda w: abs(math.log(tried[w])))
        matched[name] = variant._replace(model_args={**variant.model_args, "embed_dim": best})
    return matched


def measure_costs(
    variants: Mapping[str, Variant],
    baseline: str,
    options: CostOptions,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Parameters and GMACs as trained, and the time of the fused networks, all measured in turns.

    As in the paper, pictures have three channels and there are 1 000 classes.

    Returns:
        What `costs.json` holds: the machine, `networks` with `parameters` and `gmacs` by size, and `rows` with times
        for each setting and configuration; `ratio` is the time over the baseline's, round by round.

    Raises:
        InputError: If a network does not take a size, or does not run in the runtime.
    """
    options.check()
    networks: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        network = create(variant, device="meta")
        counted = {size: count(network, size) for size in options.sizes}
        networks[name] = {
            "parameters": counted[options.sizes[0]][0],
            "gmacs": {str(size): round(gmacs, 4) for size, (_, gmacs) in counted.items()},
            **variant._asdict(),
        }
    settings = [(options.sizes[0], options.batch), *((size, 1) for size in options.sizes)]
    rows = []
    for size, batch in dict.fromkeys(settings):
        say(f"measuring {len(variants)} networks in turns, {size} px, batch {batch}")
        turns = _turns(_prepared(variants, size, batch, options), options, options.seconds / len(settings))
        measured = dict(zip(variants, turns, strict=True))
        for name, turn in measured.items():
            spread = ratio(turn, measured[baseline])
            rows.append(
                {
                    "configuration": name,
                    "size_px": size,
                    "batch": batch,
                    "median_ms": round(1e3 * turn.median, 4),
                    "p95_ms": round(1e3 * percentile(turn.runs, 95), 4),
                    "images_per_s": round(batch / turn.median, 2),
                    "ratio": round(spread.paired, 4),
                    "quartiles": [round(spread.low, 4), round(spread.high, 4)],
                    "rounds": spread.rounds,
                }
            )
    return {
        "machine": machine(Options(threads=(options.threads,), device=options.device)),
        "runtime": options.runtime,
        "networks": networks,
        "rows": rows,
    }
