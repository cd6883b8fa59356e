"""`patnet export`: the network as a file for other runtimes."""

import json as jsonlib
import sys
from dataclasses import asdict
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from ..errors import InputError
from ..train.export import export_trained

DESCRIPTION = "Export a network as a file for ONNX Runtime, OpenVINO or PyTorch, and check it on real pictures."
EPILOG = """Examples:
  patnet export runs/first --out first.onnx
  patnet export runs/first --format openvino --precision int8 --out first.xml
  patnet export runs/first --out first.onnx --dynamic-batch --dynamic-size
  patnet export runs/first --format aotinductor --out first.pt2
  patnet predict first.onnx photo.jpg

The file holds the class names and the preprocessing, so that patnet predict and patnet evaluate take it like a run.
It is compared with PyTorch on real pictures before it is put in its place; if it does not agree, nothing is written."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, any checkpoint, or a model of timm's (untrained).")
    parser.add_argument("--out", type=str, required=True, help="The file; its ending must fit the format.")
    parser.add_argument(
        "--format",
        type=str,
        default="onnx",
        help="onnx (.onnx), openvino (.xml and .bin), torch (.pt2, torch.export) or aotinductor (.pt2, compiled).",
    )
    parser.add_argument("--precision", type=Literal["fp32", "fp16", "int8"], default="fp32", help="Of the weights.")
    parser.add_argument("--batch", type=int, default=1, help="Pictures per call.")
    parser.add_argument("--size", type=int, nargs="+", default=None, help="Side, or height and width, in px.")
    parser.add_argument("--dynamic_batch", action="store_true", help="Take any number of pictures per call.")
    parser.add_argument("--dynamic_size", action="store_true", help="Take pictures of any size; slower.")
    parser.add_argument("--unfused", action="store_true", help="Leave norms and attention as they were trained.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--data", type=str | None, default=None, help="Pictures to check with, where no run names any.")
    parser.add_argument("--check_pictures", type=int, default=32, help="How many to check with.")
    parser.add_argument("--calibration_pictures", type=int, default=300, help="How many to calibrate int8 with.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(*, json: bool, unfused: bool, size: list[int] | None, **options: Any) -> int:
    """Export, and print what was made."""
    if size is not None and len(size) > 2:
        raise InputError(f"--size {' '.join(map(str, size))}: give a side, or a height and a width")
    name, out = options.pop("run"), options.pop("out")
    with Console(stderr=True).status(f"exporting {name} to {out}"):
        result = export_trained(name, out, fused=not unfused, size=size, **options)
    if result.untrained:
        print(f"patnet: {name}: no weights are published, so these are a new network's, untrained", file=sys.stderr)
    if json:
        print(jsonlib.dumps(asdict(result), indent=2, default=str))
        return 0
    found, info = result.agreement, result.info
    takes = "any number of" if info.batch is None else str(info.batch)
    size_text = "any size" if info.size is None else f"{info.size[0]}x{info.size[1]} px"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result.path}: {info.format}, {info.precision}, {'fused' if info.fused else 'unfused'}")
    console.print(f"  takes       {takes} picture(s) of {info.in_chans} channel(s) and {size_text} per call")
    ratio = result.bytes / result.parameter_bytes
    console.print(f"  size        {result.bytes / 1e6:.2f} MB, {ratio:.3f} times the parameters in float32")
    console.print(
        f"  difference  {found.difference:.2g} at most to PyTorch's logits ({found.relative:.1e} of the largest)"
    )
    console.print(f"  answers     the same for {100 * found.same_answer:.1f} % of {found.pictures} real pictures")
    return 0
