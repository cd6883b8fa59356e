"""How fast networks are as backbones of detectors, and the detectors over them, two by two in turns."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import fuse
from ..deploy.runtimes import DTYPES, prepare
from ..errors import InputError, nearest
from .candidates import Options, fold_norms
from .report import machine
from .run import in_precision
from .timing import Turns, in_turns, percentile, ratio, use_threads

__all__ = ["PAIRS", "measure_detection"]

Say = Callable[[str], None]

PAIRS = (("patnet_s", "fasternet_s"), ("patnet_m", "fasternet_m"), ("patnet_l", "fasternet_l"))

# Of COCO, which the heads of a detector are as wide as.
CLASSES = 80


@dataclass
class Contestant:
    """A backbone in a runtime, or a whole detector in PyTorch: how to run it once, and its turns when it has had them.

    Attributes:
        part: `"backbone"` or the name of the detector.
        found: Objects that the detector finds in the picture.
    """

    part: str
    model: str
    runtime: str
    run: Callable[[], object]
    gmacs: float | None = None
    found: int | None = None
    turns: Turns | None = None

    @property
    def ms(self) -> float:
        """Median of the rounds."""
        return 1e3 * self.turns.median if self.turns else float("inf")


def measure_detection(
    build: Callable[..., Any],
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    detector: str = "mask_rcnn",
    height: int = 800,
    width: int = 1280,
    threads: int = 1,
    rounds: int = 5,
    device: str = "cpu",
    precision: str = "fp32",
    runtimes: Sequence[str] = (),
    backbone_only: bool = False,
    say: Say = lambda line: None,
    command: str = "",
) -> dict[str, Any]:
    """Time in ms of one picture through the backbones of detectors, and through the detectors over them.

    Weights and picture are random. All is fused, and the norms that this leaves behind a convolution are folded too.
    Backbones give the four maps that a feature pyramid takes; they are measured in each runtime, in the same turns,
    and compared in each, and each in what is fastest for it. Detectors are measured in PyTorch. So that they have the
    same work whatever their weights, they take every proposal for an object, and give as many as they may: 100 of 1000.

    After Ctrl-C the result holds the pairs that were measured by then, and says that it is incomplete.

    Args:
        build: `patnet.detection.build`.
        pairs: Names of timm's models, the first to be divided by the second.
        detector: A name that `build` takes.
        height: Of the picture, px.
        width: Of the picture, px.
        threads: Of the CPU.
        rounds: Of turns; in each one everything is run.
        device: `cpu` or `cuda`.
        precision: `fp32`, on a GPU also `tf32`, `bf16` or `fp16`.
        runtimes: For the backbones, as `patnet bench` names them; empty for those installed that fit the device.
        backbone_only: Leave the whole detectors out.
        say: Is told what goes on.
        command: That the result shall name.

    Returns:
        `rows` with the median of each contestant, `ratios` of each pair with the quartiles over the rounds, `left_out`
        what could not be measured, and where and how all was measured.

    Raises:
        InputError: If the options do not fit, or there is no such model.
    """
    options = Options(device=device, precision=(precision,), threads=(threads,), runtimes=tuple(runtimes)).checked()
    _check(pairs, height, width, rounds)
    start = time.monotonic()
    result: dict[str, Any] = {
        "complete": True,
        "command": command,
        "machine": machine(options),
        "detector": detector,
        "size_px": [height, width],
        "threads": threads,
        "precision": precision,
        "rows": [],
        "ratios": [],
        "left_out": [],
    }
    generator = torch.Generator().manual_seed(options.seed)
    picture = torch.rand(3, height, width, generator=generator).to(device)
    try:
        for pair in pairs:
            with use_threads(threads), in_precision(precision):
                networks = {model: _network(build, detector, model, height, width, device) for model in pair}
                groups = [_backbones(networks, picture, options, result["left_out"], say)]
                if not backbone_only:
                    groups.append([_whole(detector, *entry, picture, precision) for entry in networks.items()])
                for group in groups:
                    say(f"{' and '.join(pair)}: {group[0].part}, {rounds} rounds" if group else "nothing to measure")
                    found = in_turns(
                        [c.run for c in group], seconds=0, min_rounds=rounds, max_rounds=rounds, device=device
                    )
                    for contestant, turns in zip(group, found, strict=True):
                        contestant.turns = turns
                    rows, ratios = _compared(group, pair)
                    result["rows"] += rows
                    result["ratios"] += ratios
                    for r in ratios:
                        say(f"  {said(r)}: {r['ratio']:.3f} ({r['quartiles'][0]:.3f} to {r['quartiles'][1]:.3f})")
            del networks, groups, group
            gc.collect()
    except KeyboardInterrupt:
        result["complete"] = False
    result["took_s"] = round(time.monotonic() - start, 1)
    return result


def said(r: dict[str, Any]) -> str:
    """What a ratio compares."""
    a, b = r["numerator"], r["denominator"]
    how = a["runtime"] if a["runtime"] == b["runtime"] else f"{a['runtime']} and {b['runtime']}"
    return f"{a['model']} / {b['model']}, {r['part']}, {how}"


def _check(pairs: Sequence[tuple[str, str]], height: int, width: int, rounds: int) -> None:
    for model in [model for pair in pairs for model in pair]:
        if not timm.is_model(model):
            raise InputError(f"--pairs: no model {model!r}{nearest(model, timm.list_models())} of patnet or timm")
    if min(height, width) < 32:
        raise InputError(f"--size {height} {width}: both must be at least 32 px")
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: must be at least 1")


def _network(build: Callable[..., Any], detector: str, model: str, height: int, width: int, device: str) -> Any:
    """A fused detector with random weights that takes the picture in its own size."""
    torch.manual_seed(0)
    sides = min(height, width), max(height, width)
    network: Any = fuse(build(detector, backbone=model, num_classes=CLASSES, min_size=sides[0], max_size=sides[1]))
    network.backbone.body = fold_norms(network.backbone.body)
    if hasattr(network, "roi_heads"):
        # Every proposal is surely of the first class and none stands in the way of another, so that there are always
        # as many proposals and objects as may be.
        with torch.no_grad():
            network.roi_heads.box_predictor.cls_score.bias[1] = 10
        network.rpn.nms_thresh = network.roi_heads.nms_thresh = 1.0
    else:
        network.score_thresh, network.nms_thresh = 0.0, 1.0
    return network.to(device)


def _backbones(
    networks: dict[str, Any], picture: Tensor, options: Options, left_out: list[str], say: Say
) -> list[Contestant]:
    """The backbones in each runtime, those of one runtime side by side."""
    pictures = picture[None].contiguous()
    gmacs = {model: _gmacs(network.backbone.body, pictures) for model, network in networks.items()}
    found = []
    for runtime in options.runtimes:
        for model, network in networks.items():
            body: nn.Module = network.backbone.body
            say(f"{model}: backbone, preparing {runtime}")
            try:
                call = prepare(
                    body, pictures, runtime=runtime, precision=options.precision[0], threads=options.threads[0]
                )
                call(pictures)
                call(pictures)
            except Exception as error:  # exporters and compilers raise their own, and the other runtimes can go on
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                left_out.append(f"backbone {model}, {runtime}: {reason}")
                continue
            found.append(Contestant("backbone", model, runtime, partial(call, pictures), gmacs[model]))
    return found


def _gmacs(body: nn.Module, pictures: Tensor) -> float:
    """Convolutions, linear layers and attention, in 1e9 multiplications with addition."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body(pictures)
    return counter.get_total_flops() / 2e9


def _whole(detector: str, model: str, network: Any, picture: Tensor, precision: str) -> Contestant:
    """A detector in PyTorch."""
    half = precision in ("fp16", "bf16")

    def cast() -> AbstractContextManager:
        return torch.autocast(picture.device.type, DTYPES[precision]) if half else nullcontext()

    def run() -> list[dict[str, Tensor]]:
        with torch.inference_mode(), cast():
            return network([picture])

    return Contestant(detector, model, "eager", run, found=len(run()[0]["boxes"]))


def _compared(group: list[Contestant], pair: tuple[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the contestants, and the ratios of the pair: in each runtime, and each in its fastest."""
    best = {model: min((c for c in group if c.model == model), key=lambda c: c.ms, default=None) for model in pair}
    rows = []
    for c in group:
        assert c.turns is not None
        rows.append(
            {
                "part": c.part,
                "model": c.model,
                "runtime": c.runtime,
                "fastest": c is best[c.model],
                "median_ms": round(c.ms, 3),
                "p95_ms": round(1e3 * percentile(c.turns.runs, 95), 3),
                "runs": len(c.turns.runs),
                "gmacs": None if c.gmacs is None else round(c.gmacs, 2),
                "objects": c.found,
            }
        )
    first, second = (best[model] for model in pair)
    compared = [
        (a, b)
        for runtime in dict.fromkeys(c.runtime for c in group)
        for a in group
        for b in group
        if (a.model, b.model) == pair and a.runtime == b.runtime == runtime
    ]
    if first and second and (first, second) not in compared:
        compared.append((first, second))
    ratios = []
    for a, b in compared:
        assert a.turns is not None
        assert b.turns is not None
        spread = ratio(a.turns, b.turns)
        ratios.append(
            {
                "part": a.part,
                "numerator": {"model": a.model, "runtime": a.runtime},
                "denominator": {"model": b.model, "runtime": b.runtime},
                "fastest": (a, b) == (first, second),
                "ratio": round(spread.ratio, 4),
                "paired_median": round(spread.paired, 4),
                "quartiles": [round(spread.low, 4), round(spread.high, 4)],
                "rounds": spread.rounds,
            }
        )
    return rows, ratios
