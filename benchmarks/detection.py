"""Measure networks as backbones of detectors in all backends, and the detectors over them in PyTorch, in pairs."""

import copy
import json as jsonlib
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import timm
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patnet import InputError, fuse
from patnet.bench import (
    MEMORY_FORMATS,
    Options,
    Timing,
    describe_machine,
    fold_norms,
    interleave,
    machine,
    markdown_table,
    ratio,
    use_threads,
)
from patnet.cli import main
from patnet.deploy import BACKENDS, prepare
from patnet.deploy.backend import DTYPES
from patnet.deploy.pytorch import gpu_precision
from patnet.detection import build
from patnet.errors import nearest, one_line
from patnet.files import make_directory, save_figure, write_text
from patnet.train.config import PositiveInt

NAME = "benchmarks/detection.py"
SUMMARY = __doc__
EXAMPLES = """Examples:
  taskset -c 1 python benchmarks/detection.py         PATNet-T2, S, M and L and their FasterNets at 800x1280 px
  python benchmarks/detection.py --backbone-only --threads 2
  python benchmarks/detection.py --pairs patnet_s:resnet50 --size 480 640 --rounds 20
  python benchmarks/detection.py --device cuda --precision fp16

Networks are fused, with random weights. Of each pair the first is divided by the second; both run in the same rounds.
Ctrl-C keeps the pairs that were measured."""
EXTRA = ("detection", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))
CLASSES = 80  # of COCO, as many as the heads of a detector have
COLORS = ("#D55E00", "#0072B2")

Say = Callable[[str], None]


@dataclass
class Entry:
    """A backbone in one of the ways to run it, or a detector in PyTorch."""

    part: str  # "backbone" or the name of the detector
    model: str
    backend: str
    way: str  # title of the backend, with the memory format if it is not contiguous
    run: Callable[[], object]  # computes one image
    gmacs: float | None = None  # of a backbone
    objects: int | None = None  # that a detector finds
    timing: Timing = field(default_factory=Timing)


def run(
    *,
    pairs: list[str] = [f"patnet_{size}:fasternet_{size}" for size in ("t2", "s", "m", "l")],  # noqa: B006
    detector: Literal["mask_rcnn", "faster_rcnn", "retinanet"] = "mask_rcnn",
    size: tuple[PositiveInt, PositiveInt] = (800, 1280),
    backbone_only: bool = False,
    backends: list[str] = [],  # noqa: B006
    memory_format: list[Literal["contiguous", "channels_last"]] = ["contiguous", "channels_last"],  # noqa: B006
    rounds: PositiveInt = 10,
    threads: PositiveInt = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32",
    out: str = "runs/bench",
    json: bool = False,
) -> int:
    """Measure, write detection-speed.json, .md and images/detection-speed.png, and print the ratios.

    Args:
        pairs: Models of timm as first:second.
        detector: Detector over the backbones.
        size: Height and width of the image in px.
        backbone_only: Leave the detectors out.
        backends: Backends for the backbones; default: those of patnet bench.
        memory_format: contiguous, channels_last, of the backbones in PyTorch; detectors are contiguous.
        rounds: Number of rounds.
        threads: CPU threads.
        device: Device to measure on.
        precision: fp32; on a GPU also tf32, bf16, fp16.
        out: Directory of the files.
        json: Print JSON.
    """
    named = [_pair(text) for text in pairs]
    models = [model for pair in named for model in pair]
    if min(size) < 32:
        raise InputError(f"--size {size[0]} {size[1]}: must be at least 32 32")
    options = Options(
        models=models,
        backends=backends,
        forms=["fused"],
        precision=[precision],
        memory_format=memory_format,
        threads=[threads],
        device=device,
    ).resolved()
    make_directory(Path(out))
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    command = shlex.join(["python", NAME, *sys.argv[1:]])
    start = time.monotonic()
    result: dict[str, Any] = {"command": command, "machine": machine(device), "detector": detector}
    result |= {"size": list(size), "threads": threads, "precision": precision, "rows": [], "ratios": [], "left_out": []}
    because = None
    for pair in named:
        try:
            with use_threads(threads):
                measure_pair(pair, options, result, rounds, backbone_only, progress.print)
        except KeyboardInterrupt:
            because = "interrupted"
            break
        except Exception as error:  # each network raises its own, and the other pairs can be measured
            result["left_out"].append(f"{' and '.join(pair)}: {one_line(error)}")
            because = "not everything was measured, see what was left out"
    if because != "interrupted" and not result["rows"]:
        raise InputError("nothing could be measured: " + "; ".join(result["left_out"][:3]))
    seconds = round(time.monotonic() - start, 1)
    result = {"complete": because is None, "incomplete_because": because, **result, "seconds": seconds}
    files = write(result, Path(out))
    if json:
        print(jsonlib.dumps(result, indent=1))
    else:
        for headings, lines in tables(result):
            print("\n".join([*markdown_table(headings, lines, left=2), ""]))
        print(*(f"left out: {what}" for what in result["left_out"]), *files, sep="\n")
    return 130 if because == "interrupted" else 0


def _pair(text: str) -> tuple[str, str]:
    first, colon, second = text.partition(":")
    if not (first and colon and second):
        raise InputError(f"--pairs {text}: give two models, such as patnet_s:fasternet_s")
    for model in (first, second):
        if not timm.is_model(model):
            raise InputError(f"--pairs {text}: no model {model!r}{nearest(model, timm.list_models())}")
    return first, second


def measure_pair(
    pair: tuple[str, str], options: Options, result: dict[str, Any], rounds: int, backbone_only: bool, say: Say
) -> None:
    """Measure the backbones, then the detectors of a pair, and add the rows and ratios to the result."""
    height, width = result["size"]
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)).to(options.device)
    networks = {model: build_detector(result["detector"], model, height, width).to(options.device) for model in pair}
    parts = [_backbones(networks, image, options, result["left_out"], say)]
    if not backbone_only:
        precision = options.precision[0]
        parts.append([_whole(result["detector"], *item, image, precision) for item in networks.items()])
    for entries in parts:
        say(f"{' and '.join(pair)}: measuring {len(entries)} entries in {rounds} rounds")
        runs, timings = [entry.run for entry in entries], [entry.timing for entry in entries]
        interleave(runs, timings, seconds=0, min_rounds=rounds, max_rounds=rounds, device=options.device)
        best = {model: _fastest(entry for entry in entries if entry.model == model) for model in pair}
        result["rows"] += [_row(entry, entry is best[entry.model]) for entry in entries]
        result["ratios"] += [
            _ratio(a, b, fastest=(a, b) == tuple(best.values()))
            for a, b in product(entries, entries)
            if (a.model, b.model) == pair and (a.way == b.way or (a, b) == tuple(best.values()))
        ]


def build_detector(detector: str, model: str, height: int, width: int) -> Any:
    """A fused detector with random weights that takes the image in its own size, and always has the same work.

    Every proposal is surely of the first class and suppresses no other, so that there are always as many proposals and
    objects as there may be, 1000 and 100.
    """
    torch.manual_seed(0)
    sides = min(height, width), max(height, width)
    network: Any = fuse(build(detector, backbone=model, num_classes=CLASSES, min_size=sides[0], max_size=sides[1]))
    network.backbone.body = fold_norms(network.backbone.body)
    if hasattr(network, "roi_heads"):
        with torch.no_grad():
            network.roi_heads.box_predictor.cls_score.bias[1] = 10
        network.rpn.nms_thresh = network.roi_heads.nms_thresh = 1.0
    else:
        network.score_thresh, network.nms_thresh = 0.0, 1.0
    return network


def _backbones(networks: dict[str, Any], image: Tensor, options: Options, left_out: list[str], say: Say) -> list[Entry]:
    entries = []
    images = image[None].contiguous()
    gmacs = {}
    for model, network in networks.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.backbone.body(images)
        gmacs[model] = round(counter.get_total_flops() / 2e9, 2)
    for (backend, _, precision, layout), (model, network) in product(options.ways(), networks.items()):
        way = BACKENDS[backend].title + (f", {layout}" if layout != "contiguous" else "")
        say(f"{model}: preparing the backbone in {way}")
        body = copy.deepcopy(network.backbone.body).to(memory_format=MEMORY_FORMATS[layout])
        given = images.contiguous(memory_format=MEMORY_FORMATS[layout])
        try:
            call = prepare(body, given, backend=backend, precision=precision, threads=options.threads[0])
            for _ in range(2):
                call(given)
        except Exception as error:  # exporters and compilers raise their own, and the other backends can be measured
            left_out.append(f"backbone {model}, {way}: {one_line(error)}")
            continue
        entries.append(Entry("backbone", model, backend, way, partial(call, given), gmacs=gmacs[model]))
    return entries


def _whole(detector: str, model: str, network: Any, image: Tensor, precision: str) -> Entry:
    def run() -> list[dict[str, Tensor]]:
        cast = torch.autocast(image.device.type, DTYPES[precision], enabled=precision in ("fp16", "bf16"))
        with torch.inference_mode(), gpu_precision(precision), cast:
            return network([image])

    return Entry(detector, model, "eager", BACKENDS["eager"].title, run, objects=len(run()[0]["boxes"]))


def _fastest(entries: Any) -> Entry | None:
    return min(entries, key=lambda entry: entry.timing.median, default=None)


def _row(entry: Entry, fastest: bool) -> dict[str, Any]:
    named = {"part": entry.part, "model": entry.model, "backend": entry.backend, "way": entry.way, "fastest": fastest}
    times = {"median_ms": round(1e3 * entry.timing.median, 3), "runs": len(entry.timing.runs)}
    return named | times | {"gmacs": entry.gmacs, "objects": entry.objects}


def _ratio(a: Entry, b: Entry, *, fastest: bool) -> dict[str, Any]:
    first, second = ({"model": entry.model, "way": entry.way} for entry in (a, b))
    named = {"part": a.part, "first": first, "second": second, "fastest": fastest}
    return named | ratio(a.timing, b.timing)


def _part(part: str) -> str:
    return "backbone" if part == "backbone" else f"detector {part}"


def tables(result: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Headings and cells of the table of ratios and of the table of times; the first two columns are text."""
    ratios, times = [], []
    for r in result["ratios"]:
        ways = " and ".join(dict.fromkeys((r["first"]["way"], r["second"]["way"])))
        fastest = ", each in its fastest" if r["fastest"] and r["part"] == "backbone" else ""
        models = f"{r['first']['model']} / {r['second']['model']}"
        value = f"{r['ratio']:.3f} ({r['low']:.3f} to {r['high']:.3f})"
        ratios.append([models, f"{_part(r['part'])}, {ways}{fastest}", value])
    for row in result["rows"]:
        gmacs = "" if row["gmacs"] is None else f"{row['gmacs']:.1f}"
        objects = "" if row["objects"] is None else str(row["objects"])
        what = f"{_part(row['part'])}, {row['way']}"
        times.append([row["model"], what, f"{row['median_ms']:.1f}", gmacs, objects])
    return [
        (["first / second", "what", "ratio of times (quartiles)"], ratios),
        (["model", "what", "median, ms", "GMACs", "objects found"], times),
    ]


def draw(result: dict[str, Any]) -> Figure:
    """Bars of the times, backbones above and detectors below, with the ratios of the fastest."""
    parts = list(dict.fromkeys(row["part"] for row in result["rows"]))
    heights = [sum(row["part"] == part for row in result["rows"]) for part in parts]
    figure = Figure(figsize=(9.5, 1.6 + 0.3 * sum(heights) + 0.5 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, part in zip(grid, parts, strict=True):
        rows = [row for row in result["rows"] if row["part"] == part]
        models = list(dict.fromkeys(row["model"] for row in rows))
        rows.sort(key=lambda row: models.index(row["model"]))
        best = {r["first"]["model"]: r for r in result["ratios"] if r["part"] == part and r["fastest"]}
        labels = []
        for row in rows:
            r = best.get(row["model"]) if row["fastest"] else None
            labels.append(f"{row['median_ms']:.0f}" + (f", {r['ratio']:.2f} of {r['second']['model']}" if r else ""))
        bars = axes.barh(
            [f"{row['model']}, {row['way']}" for row in rows],
            [row["median_ms"] for row in rows],
            color=[COLORS[0] if row["model"] in best else COLORS[1] for row in rows],
        )
        for bar, row in zip(bars, rows, strict=True):
            bar.set_alpha(1.0 if row["fastest"] else 0.45)
        axes.bar_label(bars, labels, padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.32)
        axes.set(title=_part(part).capitalize(), xlabel="median time of one image, ms")
        axes.grid(axis="x", alpha=0.3)
    height, width = result["size"]
    figure.suptitle(f"One image of {height}x{width} px, {result['precision']}, fused")
    figure.supxlabel(fill(describe_machine(result["machine"]), 130), fontsize=7.5, color="0.35")
    return figure


METHOD = """Weights and images are random, networks are fused. Backbones give the four feature maps that a feature
pyramid takes; they are measured in the same rounds in each backend, in eager PyTorch in both memory formats, and
compared in each and each in its fastest. Detectors run in PyTorch; so that they have the same work whatever their
weights, they take every proposal as an object and give as many objects as they may, 100. Ratios are the median and, in
parentheses, the quartiles over the rounds; below 1 the first is faster."""


def write(result: dict[str, Any], out: Path) -> list[Path]:
    """Write `detection-speed.json`, `.md` and the figure, if anything was measured; give the files."""
    if not result["rows"]:
        return []  # earlier ones stay
    files = [out / "detection-speed.json", out / "detection-speed.md"]
    files.append(save_figure(draw(result), out / "images" / "detection-speed.png"))
    height, width = result["size"]
    lines = ["# Backbones of detectors", ""]
    lines += [] if result["complete"] else [f"**Incomplete: {result['incomplete_because']}.**", ""]
    minutes = f"{result['seconds'] / 60:.1f} min"
    lines += [
        f"Measured by `{result['command']}` in {minutes} on {describe_machine(result['machine'])}; one image of "
        f"{height}x{width} px (height by width), {result['precision']}, CPU threads: {result['threads']}.",
        "",
        "![Times of backbones and detectors](images/detection-speed.png)",
        "",
        METHOD,
        "",
    ]
    for title, (headings, cells) in zip(("Ratios", "Times"), tables(result), strict=True):
        lines += [f"## {title}", "", *markdown_table(headings, cells, left=2), ""]
    lines += ["## Left out", "", *(f"- {what}" for what in result["left_out"]), ""] if result["left_out"] else []
    write_text(files[1], "\n".join(lines))
    write_text(files[0], jsonlib.dumps(result, indent=1) + "\n")
    return files


if __name__ == "__main__":
    sys.exit(main(script=sys.modules[__name__]))
