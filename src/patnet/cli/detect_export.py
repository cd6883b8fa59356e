"""`patnet detect export`: a complete detector as a file for another runtime."""

import json as jsonlib
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from torchvision.transforms.v2 import functional as F

from ..data import find_images, read_image
from ..deploy import bytes_of
from ..detection import export_detector, load_detector
from ..train.config import PositiveInt
from .tables import print_lines

SUMMARY = "Export a complete detector for ONNX Runtime, OpenVINO or ExecuTorch, and check it on real images."
EXAMPLES = """Examples:
  patnet detect export runs/mine images/ --size 400 480 --out mine.onnx
  patnet detect export runs/mine images/ --size 400 480 --out mine.xml
  patnet detect export runs/retina images/ --size 320 320 --out retina.pte
  patnet detect export runs/coco_s val2017/ --size 800 1280 --check-images 16 --out coco_s.onnx

The file takes one image of that height and width, float32 in [0, 1], and gives boxes, labels, scores and masks, best
first. It includes the resizing and the normalisation. If it does not agree with PyTorch, nothing is written.
ExecuTorch takes RetinaNet alone, and gives as many rows for each image, with a score of 0 where nothing was found."""
EXTRA = ("detection", ("jsonargparse", "rich", "faster_coco_eval"))
POSITIONAL = {"run": None, "images": "+"}


def run(
    run: str,
    images: list[str],
    *,
    size: tuple[PositiveInt, PositiveInt],
    out: str,
    check_images: PositiveInt = 8,
    unfused: bool = False,
    checkpoint: Literal["best", "last"] = "best",
    json: bool = False,
) -> int:
    """Export, and print how the file agrees with PyTorch.

    Args:
        run: Run directory, or a checkpoint of a detector.
        images: Image files, directories and glob patterns to check with.
        size: Height and width of the images in px.
        out: The file: .onnx, .xml (OpenVINO, with weights in .bin) or .pte (ExecuTorch).
        check_images: Number of images to check with.
        unfused: Leave the backbone's norms unfused.
        checkpoint: Checkpoint of the run.
        json: Print JSON.
    """
    files = list(islice(find_images(images), check_images))
    loaded = load_detector(run, checkpoint)
    tensors = [F.to_dtype(F.pil_to_tensor(read_image(file, loaded.mode)), scale=True) for file in files]
    with Console(stderr=True).status(escape(f"exporting {run} to {out}")):
        found = export_detector(
            loaded.model,
            out,
            size=(size[0], size[1]),
            images=tensors,
            class_names=loaded.class_names,
            fused=not unfused,
        )
    written = bytes_of(Path(out))
    if json:
        print(jsonlib.dumps({"file": out, "bytes": written, **asdict(found)}, indent=2))
        return 0
    print_lines(
        f"{out}: {written / 1e6:.1f} MB, for one image of {size[0]}x{size[1]} px",
        f"  {100 * found.matched:.1f} % of {found.detections} detections in {found.images} images agree with PyTorch; "
        f"at most, scores differ by {found.score:.1e}, corners by {found.corner:.1e} of the image's side, masks by "
        f"{found.mask:.1e} of their area",
    )
    return 0
