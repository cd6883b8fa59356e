"""`patnet detect bench`: how fast backbones and detectors are."""

import json as jsonlib
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from ...benchmark.detection import PAIRS, measure_detection
from ...benchmark.detection_report import NAME, detection_tables, write_detection
from ...benchmark.write import check_folder
from ...detection import build
from ...detection.evaluation_time import measure_evaluation
from ...errors import InputError

DESCRIPTION = "Measure backbones under a detector, and the detectors, two by two."
EPILOG = """Examples:
  patnet detect bench                        PATNet-S, M and L beside their FasterNets, at 800x1280 px
  patnet detect bench --backbone_only --threads 2
  patnet detect bench --pairs patnet_s:resnet50 --size 480 640 --rounds 11
  patnet detect bench --device cuda --precision fp16
  patnet detect bench --evaluation           how long the figures of 5 000 pictures take

All is fused, with random weights; of each pair the first is divided by the second, which run in turns. Backbones are
compared in each runtime, and each in what is fastest for it; detectors in PyTorch. Ctrl-C keeps the pairs that were
measured."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=str,
        default=[":".join(pair) for pair in PAIRS],
        help="first:second, of timm's names.",
    )
    parser.add_argument(
        "--detector", type=Literal["mask_rcnn", "faster_rcnn", "retinanet"], default="mask_rcnn", help="Over them."
    )
    parser.add_argument("--size", nargs=2, type=int, default=[800, 1280], help="Height and width of the picture, px.")
    parser.add_argument("--backbone_only", action="store_true", help="Leave the whole detectors out.")
    parser.add_argument("--runtimes", nargs="+", type=str, default=[], help="eager, compile, onnxruntime, openvino.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds of turns.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda.")
    parser.add_argument("--precision", type=str, default="fp32", help="fp32; on a GPU also tf32, bf16, fp16.")
    parser.add_argument("--evaluation", action="store_true", help="Measure COCO's figures instead, of random answers.")
    parser.add_argument("--compare", action="store_true", help="With --evaluation, pycocotools beside it.")
    parser.add_argument("--out", type=str, default="runs/bench", help="Folder for JSON, Markdown and picture.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, pairs: list[str], size: list[int], out: str, json: bool, evaluation: bool, **options: Any) -> int:
    """Measure, write, and print the ratios."""
    compare = options.pop("compare")
    if evaluation:
        _print_evaluation(compare, json)
        return 0
    if compare:
        raise InputError("--compare: is for --evaluation; give that too, or leave it out")
    check_folder(Path(out))
    progress = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    height, width = size
    result = measure_detection(
        build,
        [_pair(text) for text in pairs],
        height=height,
        width=width,
        say=progress.print,
        command=shlex.join(["patnet", *sys.argv[1:]]),
        **options,
    )
    files = write_detection(result, Path(out), NAME)
    if json:
        print(jsonlib.dumps(result, indent=1))
    else:
        console = Console(highlight=False)
        for title, headings, lines in detection_tables(result):
            table = Table(title=title)
            for i, heading in enumerate(headings):
                table.add_column(heading, justify="left" if i < 2 else "right")
            for line in lines:
                table.add_row(*line)
            console.print(table)
        for what in result["left_out"]:
            progress.print(f"left out: {what}")
        for file in files:
            console.print(f"Written {file}", soft_wrap=True, markup=False)
    return 0 if result["complete"] else 130


def _pair(text: str) -> tuple[str, str]:
    first, colon, second = text.partition(":")
    if not (first and colon and second):
        raise InputError(f"--pairs {text}: give two models, such as patnet_s:fasternet_s")
    return first, second


def _print_evaluation(compare: bool, json: bool) -> None:
    found = measure_evaluation(compare=compare)
    if json:
        print(jsonlib.dumps(found, indent=2))
        return
    for kind in ("box", "mask"):
        beside = ""
        if compare:
            entry = found[kind]
            beside = (
                f", by pycocotools {entry['pycocotools_seconds']:.1f} s, "
                f"largest difference {entry['largest_difference']:.1e}"
            )
        print(f"{kind:<6}{found[kind]['seconds']:6.1f} s{beside}")
    print(
        f"the figures of {found['pictures']} random pictures, {found['detections']} detections in each, "
        f"{found['classes']} classes"
    )
