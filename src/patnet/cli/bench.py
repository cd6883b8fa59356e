"""`patnet bench`: how fast networks are on this machine, in each backend, and relative to each other."""

import json as jsonlib
import shlex
import sys
from itertools import product
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..bench.measure import measure
from ..bench.networks import build, random_images, usual_size
from ..bench.options import Options
from ..bench.report import check_directory, describe_machine, table, write
from ..bench.timing import use_threads
from ..deploy import BACKENDS, Profile, profile

SUMMARY = "Measure networks interleaved: latency and images/s in each backend and precision, and their ratios."
EXAMPLES = """Examples:
  patnet bench                               the PATNets and FasterNets, in a few minutes
  patnet bench patnet_t2 resnet50            any models of timm, compared with the last one
  patnet bench runs/first                    a network of your own, at its own image size
  patnet bench patnet_t2 --precision fp32 int8 --backends onnx openvino
  patnet bench patnet_t0 fasternet_t0 --backends eager --forms unfused
  patnet bench patnet_t2 --img-size 224 448 --batch-size 1 16
  patnet bench patnet_t2 --backends openvino --profile
  patnet bench --device cuda --minutes 9 --name benchmarks-gpu

All candidates of a group of models run in the same rounds. The table has each model in its fastest backend, the next
fastest one, and the time relative to the last model of the group. Ctrl-C keeps what was measured so far."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))
POSITIONAL = {"models": "*"}
CONFIG = Options


def run(
    *, config: Options, out: str = "runs/bench", name: str = "benchmarks", profile: bool = False, json: bool = False
) -> int:
    """Measure, write, and print the table.

    Args:
        config: What to measure.
        out: Directory for JSON, CSV, Markdown and figure.
        name: Name of the files without suffix.
        profile: Print where the time goes by operation, of the first form, image size, batch size and threads.
        json: Print JSON.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # so that no line of a file is wrapped
    if profile:
        _profile(config.resolved(), console, json)
        return 0
    check_directory(Path(out))
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    result = measure(config, say=progress.print, command=shlex.join(["patnet", *sys.argv[1:]]))
    files = write(result, Path(out), name)
    if json:
        print(jsonlib.dumps(result, indent=1))
    else:
        _print_table(console, "Each model in its fastest backend", *table(result["rows"]), text_columns=3)
        console.print(describe_machine(result["machine"]))
        if not result["complete"]:
            console.print(f"Incomplete: {result['incomplete_because']}.")
        for file in files:
            console.print(str(file))
    return 130 if result["incomplete_because"] == "interrupted" else 0


def _print_table(console: Console, title: str, headings: list[str], lines: list[list[str]], text_columns: int) -> None:
    shown = Table(title=title, box=SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if i < text_columns else "right")
    for line in lines:
        shown.add_row(*line)
    console.print(shown)


def _profile(options: Options, console: Console, json: bool) -> None:
    form, batch_size, threads = [*options.forms, "fused"][0], options.batch_size[0], options.threads[0]
    profiles = []
    for model in options.models:
        network = build(model, unfused=form == "unfused").to(options.device)
        size = [*options.img_size, usual_size(model)][0]
        images = random_images(network, batch_size, size).to(options.device)
        calibration = random_images(network, max(8, batch_size), size)
        for backend, precision in product(options.backends, options.precision):
            if precision not in BACKENDS[backend].precisions:
                continue
            with use_threads(threads):
                found = profile(
                    network, images, backend=backend, precision=precision, threads=threads, calibration=calibration
                )
            profiles.append({"model": model, "backend": backend, "form": form, **vars(found)})
            if not json:
                setting = f"{model}, {form}, {BACKENDS[backend].title}, {size} px, batch size {batch_size}"
                computed = f"computed in {found.computed_in or 'a precision that the backend does not state'}"
                _print_profile(console, f"{setting}, threads {threads}, {precision} ({computed})", found)
    if json:
        print(jsonlib.dumps(profiles, indent=1))


def _print_profile(console: Console, title: str, found: Profile) -> None:
    total = sum(ms for ms, _ in found.operations.values())
    lines = [
        [name, f"{ms:.3f}", f"{runs:.1f}", f"{100 * ms / total:.1f}"] for name, (ms, runs) in found.operations.items()
    ]
    _print_table(
        console, title, ["operation", "ms", "runs", "share, %"], [*lines, ["total", f"{total:.3f}", "", ""]], 1
    )
