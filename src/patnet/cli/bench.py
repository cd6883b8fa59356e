"""`patnet bench`: how fast networks are on this machine, in each backend, and relative to each other."""

import json as jsonlib
import shlex
import sys
from collections.abc import Collection
from itertools import product
from pathlib import Path

from rich.console import Console

from ..bench.measure import MEMORY_FORMATS, Options, measure
from ..bench.networks import build, count, random_images, usual_size
from ..bench.report import describe_machine, table, write
from ..bench.timing import use_threads
from ..deploy import BACKENDS, profile
from ..deploy.backend import tracing
from ..files import make_directory
from .parser import refuse_idle
from .tables import print_lines, print_table

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
fastest one, and the time relative to the last model of the group. Ctrl-C and SIGTERM
keep what was measured so far."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "matplotlib", "rich"))
POSITIONAL = {"models": "*"}
CONFIG = Options


def run(
    *,
    config: Options,
    out: str = "runs/bench",
    name: str = "benchmarks",
    profile: bool = False,
    json: bool = False,
    given: Collection[str] = (),
) -> int:
    """Measure, write, and print the table.

    Args:
        config: What to measure.
        out: Directory for JSON, CSV, Markdown and figure.
        name: Name of the files without suffix.
        profile: Print where the time goes by operation, of the first form, image size, memory format, batch size and
            threads.
        json: Print JSON.
    """
    refuse_idle(given, {"--no-profile": (not profile, ("seconds", "minutes", "out", "name"))})
    if profile:
        _profile(config.resolved(), json)
        return 0
    make_directory(Path(out))
    progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    result = measure(config, say=progress.print, command=shlex.join(["patnet", *sys.argv[1:]]))
    files = write(result, Path(out), name) if result["rows"] else []  # earlier ones stay
    if json:
        print(jsonlib.dumps(result, indent=1))
    else:
        print_table(*table(result["rows"]), left=3, title="Each model in its fastest backend")
        incomplete = [] if result["complete"] else [f"Incomplete: {result['incomplete_because']}."]
        print_lines(describe_machine(result["machine"]), *incomplete, *files)
    return 130 if result["incomplete_because"] == "interrupted" else 0


def _profile(options: Options, json: bool) -> None:
    form, batch_size, threads = [*options.forms, "fused"][0], options.batch_size[0], options.threads[0]
    profiles = []
    for model in options.models:
        network = build(model, unfused=form == "unfused").to(options.device)
        size = [*options.img_size, usual_size(model)][0]
        count(network, size)  # an error message if the network does not take images of this size
        images = random_images(network, batch_size, size).to(options.device)
        calibration = random_images(network, max(8, batch_size), size)
        for backend, precision in product(options.backends, options.precision):
            if precision not in BACKENDS[backend].precisions:
                continue
            memory_format = options.memory_format[0] if BACKENDS[backend].any_layout else "contiguous"
            layout = MEMORY_FORMATS[memory_format]
            network, images = network.to(memory_format=layout), images.contiguous(memory_format=layout)
            chosen = {"backend": backend, "precision": precision, "threads": threads}
            with use_threads(threads), tracing(f"{model}: backend {backend} cannot profile it in {precision}"):
                found = profile(network, images, calibration=calibration, **chosen)
            way = {"backend": backend, "form": form, "memory_format": memory_format}
            profiles.append({"model": model, **way, **vars(found)})
            if json:
                continue
            setting = f"{model}, {form}, {BACKENDS[backend].title}, {memory_format}, {size} px, batch size {batch_size}"
            computed = f"computed in {found.computed_in or 'a precision that the backend does not state'}"
            title = f"{setting}, threads {threads}, {precision} ({computed})"
            total = sum(ms for ms, _ in found.operations.values())
            rows = [
                [operation, f"{ms:.3f}", f"{runs:.1f}", f"{100 * ms / total:.1f}"]
                for operation, (ms, runs) in found.operations.items()
            ]
            rows.append(["total", f"{total:.3f}", "", ""])
            print_table(("operation", "ms", "runs", "share, %"), rows, title=title)
    if json:
        print(jsonlib.dumps(profiles, indent=1))
