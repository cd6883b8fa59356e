"""`patnet detect export`: a whole detector as a file for ONNX Runtime."""

import json as jsonlib
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from torchvision.transforms.v2 import functional as F

from ...data import read_image, walk_pictures
from ...detection.checkpoint import load_detector
from ...detection.export import export_onnx
from ...errors import InputError

DESCRIPTION = "Export a whole detector as an ONNX file, and check it against PyTorch on real pictures."
EPILOG = """Examples:
  patnet detect export runs/panels panels/test --size 400 480 --out panels.onnx
  patnet detect export runs/coco_s val2017/ --size 800 1280 --check_pictures 16 --out coco_s.onnx

The file takes one picture of that height and width, float32 in [0, 1], and gives boxes, labels, scores and masks, best
first. It holds the resizing and normalisation too. If it does not agree with PyTorch, nothing is written."""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=str, help="Run folder, or a directory with a detector.")
    parser.add_argument("images", nargs="+", type=str, help="Picture files, folders and glob patterns to check with.")
    parser.add_argument("--size", nargs=2, type=int, required=True, help="Height and width of the pictures, px.")
    parser.add_argument("--out", type=str, required=True, help="The file, .onnx.")
    parser.add_argument("--check_pictures", type=int, default=8, help="How many to check with.")
    parser.add_argument("--unfused", action="store_true", help="Leave the backbone's norms as they were trained.")
    parser.add_argument("--which", type=Literal["best", "last"], default="best", help="Weights of the run.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(
    *,
    run: str,
    images: list[str],
    size: list[int],
    out: str,
    check_pictures: int,
    unfused: bool,
    which: str,
    json: bool,
) -> int:
    """Export, and say how the file agrees."""
    if check_pictures < 1:
        raise InputError(f"--check_pictures {check_pictures}: must be at least 1")
    files = list(islice(walk_pictures(images), check_pictures))
    trained = load_detector(run, which)
    pictures = [F.to_dtype(F.pil_to_tensor(read_image(file, trained.mode)), scale=True) for file in files]
    with Console(stderr=True).status(f"exporting {run} to {out}"):
        found = export_onnx(trained.model, out, size=(size[0], size[1]), pictures=pictures, fused=not unfused)
    if json:
        print(jsonlib.dumps({"file": out, "bytes": Path(out).stat().st_size, **asdict(found)}, indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB, for one picture of {size[0]}x{size[1]} px")
    console.print(
        f"  {100 * found.matched:.1f} % of {found.detections} detections in {found.pictures} pictures agree with "
        f"PyTorch; at most, scores differ by {found.score:.1e}, corners by {found.corner:.1e} of the picture's side, "
        f"masks by {found.mask:.1e} of their area"
    )
    return 0
