"""`patnet bench`: how fast models are here, in what form and runtime, and how they compare."""

import json as jsonlib
import shlex
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from timm.models import is_model, list_models

from ..benchmark import Options, measure, redraw, write
from ..benchmark.loading import measure_loading
from ..benchmark.profile import PROFILERS, profile
from ..benchmark.report import fastest_tables, ratio_lines, say_machine
from ..benchmark.training import measure_training, profile_training
from ..benchmark.write import check_folder
from ..errors import InputError, nearest

DESCRIPTION = "Measure models against each other: latency, images/s, memory, and the share of what the machine can do."
EPILOG = """Examples:
  patnet bench                      the PATNets beside their FasterNets, in under ten minutes
  patnet bench --peers              and beside what else one would take
  patnet bench patnet_t2 fasternet_t2 --runtimes onnxruntime openvino eager --forms fused trained --batch 1 16
  patnet bench patnet_t2 --precision fp32 int8
  patnet bench runs/first           a network of your own, at its own size
  patnet bench patnet_t2 --size 224 448
  patnet bench patnet_t2 --runtimes openvino --forms fused --profile
  patnet bench --loading            training pictures beside plain torchvision's
  patnet bench --training --against first    a training step beside that of the project's first version
  patnet bench --device cuda --minutes 9 --name benchmarks-gpu
  patnet bench --redraw docs/benchmarks-gpu.json --out docs --name benchmarks-gpu

Every model is measured in all forms and runtimes given, and compared with others in those that are fastest for it.
Ctrl-C keeps what was measured so far."""

# Without arguments it shall be done in ten minutes on two cores, the last comparison and the files included.
DEFAULT_MINUTES = 8.5


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("models", nargs="*", type=str, help="Names as timm knows them, runs, checkpoints.")
    parser.add_argument("--peers", action="store_true", help="Add models of other families with published accuracies.")
    parser.add_argument("--forms", nargs="+", type=str, default=[], help="fused, trained.")
    parser.add_argument("--runtimes", nargs="+", type=str, default=[], help="eager, compile, onnxruntime, openvino.")
    parser.add_argument(
        "--precision",
        nargs="+",
        type=str,
        default=[],
        help="fp32, int8; GPU: fp32, tf32, bf16, fp16; --training: fp32, bf16.",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[], help="Pictures in a batch.")
    parser.add_argument("--chunks", nargs="+", type=int, default=[], help="Pictures at a time, of which to choose.")
    parser.add_argument("--size", nargs="+", type=int, default=[], help="Side of the pictures, px.")
    parser.add_argument(
        "--memory_formats", nargs="+", type=str, default=["contiguous"], help="contiguous, channels_last."
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[], help="CPU threads: 1, with --training all.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda.")
    parser.add_argument("--minutes", type=float | None, default=None, help="Measure no longer than this.")
    parser.add_argument("--seconds", type=float, default=4.0, help="That a comparison takes.")
    parser.add_argument("--memory", action="store_true", help="Measure peak memory on the CPU too, which takes time.")
    parser.add_argument("--calibration", type=int, default=64, help="Pictures that int8 is calibrated with.")
    parser.add_argument("--out", type=str, default="runs/bench", help="Folder for JSON, CSV, Markdown and picture.")
    parser.add_argument("--name", type=str, default="benchmarks", help="Of the files.")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="Show where the time goes in a runtime, on one thread; with --training in a step.",
    )
    parser.add_argument("--loading", action="store_true", help="Show how fast training pictures are loaded on a core.")
    parser.add_argument(
        "--training", action="store_true", help="Show how fast a training step is, eager and compiled, on all cores."
    )
    parser.add_argument(
        "--against", type=str | None, default=None, help="With --training, an earlier version: first, or as git says."
    )
    parser.add_argument("--redraw", type=str | None, default=None, help="JSON of a result to write anew.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, out: str, name: str, json: bool, **options: Any) -> int:
    """Measure, write, and print the ratios."""
    earlier, by_kind = options.pop("redraw"), options.pop("profile")
    if earlier:
        for file in redraw(Path(earlier), Path(out), name):
            print(file)
        return 0
    if options.pop("loading"):
        _print_loading(measure_loading(), json)
        return 0
    training, against = options.pop("training"), options.pop("against")
    if training:
        _print_training(options, against, json, by_kind=by_kind)
        return 0
    plan = Options(**options | {"threads": options["threads"] or [1]})
    if not plan.models and not plan.peers and plan.checked().frugal and plan.minutes is None:
        plan.minutes = DEFAULT_MINUTES
    checked = plan.checked()
    if by_kind:
        for model in checked.models:
            for runtime in [name for name in checked.runtimes if name in PROFILERS or options["runtimes"]]:
                found = profile(
                    model,
                    runtime=runtime,
                    form=checked.forms[0],
                    size=(checked.size or (None,))[0],
                    batch=checked.batch[0],
                )
                _print_profile(f"{model} {checked.forms[0]}, {runtime}, batch {checked.batch[0]}, one thread", found)
        return 0
    check_folder(Path(out))
    progress = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    result = measure(plan, progress.print, shlex.join(["patnet", *sys.argv[1:]]))
    files = write(result.as_dict(), Path(out), name)
    if json:
        print(result.to_json(), end="")
    else:
        _print(result.as_dict(), files)
    return 130 if result.incomplete == "interrupted" else 0


def _print_loading(rates: dict[str, float], json: bool) -> None:
    if json:
        print(jsonlib.dumps(rates, indent=2))
        return
    for name, rate in rates.items():
        print(f"{name:<30}{rate:6.0f} images/s")
    print("one core, JPEG of 500x375 px to 224 px, median of rounds taken in turns")


def _print_training(options: dict[str, Any], against: str | None, json: bool, *, by_kind: bool) -> None:
    model = (options["models"] or ["patnet_t0"])[0]
    size, batch = (options["size"] or [96])[0], (options["batch"] or [64])[0]
    if not is_model(model):
        raise InputError(f"--training {model}: no such model{nearest(model, list_models())}")
    threads = options["threads"][0] if options["threads"] else None
    said = "all CPU cores" if threads is None else f"{threads} CPU thread(s)"
    if by_kind:
        step = profile_training(model, size=size, batch=batch, threads=threads)
        _print_profile(f"{model}, an eager training step, {size} px, batch {batch}, {said}", step.kinds)
        print(
            f"Its convolutions and products are {step.gflop:.1f} GFLOP; at the {step.gflop_per_s:.0f} GFLOP/s of a "
            f"product of 1024x1024 matrices they would take {step.least_ms:.0f} ms."
        )
        return
    precisions = options["precision"] or ["fp32"]
    found = measure_training(model, size=size, batch=batch, threads=threads, against=against, precisions=precisions)
    if json:
        print(jsonlib.dumps(found, indent=2))
        return
    for name, row in found.items():
        beside = ""
        if "speed_up" in row:
            first = f"version {against}, {precisions[0]}"
            beside = f"  {row['speed_up']:.2f} times {first} ({row['low']:.2f} to {row['high']:.2f})"
        print(f"{name:<32}{row['images_per_s']:6.1f} images/s{beside}")
    print(f"{model}, forward, backward and AdamW, {size} px, batch {batch}, {said}, median of rounds in turns")


def _print_profile(title: str, found: dict[str, tuple[float, float]]) -> None:
    table = Table(title=title)
    table.add_column("operation")
    for heading in ("ms", "runs", "of all, %"):
        table.add_column(heading, justify="right")
    total = sum(ms for ms, _ in found.values())
    for kind, (ms, runs) in found.items():
        table.add_row(kind, f"{ms:.3f}", f"{runs:.0f}", f"{100 * ms / total:.1f}")
    table.add_section()
    table.add_row("all", f"{total:.3f}", f"{sum(runs for _, runs in found.values()):.0f}", "100.0")
    Console(highlight=False).print(table)


def _print(result: dict[str, Any], files: list[Path]) -> None:
    console = Console(highlight=False)
    for heading, names, lines in fastest_tables(result["rows"]):
        table = Table(title=f"{heading}: each model in what is fastest for it")
        shown = [i for i, name in enumerate(names) if name not in ("px", "parameters", "GMACs")]
        for i in shown:
            table.add_column(names[i], justify="left" if i < 2 else "right")
        for line in lines:
            table.add_row(*(line[i] for i in shown))
        console.print(table)
    for first, second, setting, ratio, paired in ratio_lines(result["ratios"]):
        console.print(f"{first} / {second}, {setting}: {ratio}, round by round {paired}", soft_wrap=True)
    console.print(say_machine(result["machine"]), soft_wrap=True)
    if not result["complete"]:
        console.print(f"Incomplete: {result['incomplete_because']}.", soft_wrap=True)
    for file in files:
        console.print(str(file), soft_wrap=True)
