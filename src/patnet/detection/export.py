"""A detector as an ONNX file, checked against PyTorch on real pictures."""

import copy
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deploy import fuse
from ..deploy.format import require
from ..deploy.onnx import onnx_program, onnx_session
from ..errors import InputError
from .one_picture import OnePicture

__all__ = ["DetectionAgreement", "export_onnx"]

INPUT = "picture"

# Scores closer than this change places by rounding alone.
ROUNDING = 1e-5
# Share of the detections that must agree: overlap at the very threshold, too, is decided by rounding.
LEAST_MATCHED = 0.98

logger = logging.getLogger("patnet")


@dataclass(frozen=True)
class DetectionAgreement:
    """How an exported detector agrees with PyTorch.

    Attributes:
        pictures: How many were compared.
        detections: How many objects PyTorch found in them.
        matched: Share of them that the file found too, and of those of the file that PyTorch found: of the same label,
            with score, corners and mask within the tolerance. Those that share the lowest score that was found in a
            picture, to 1e-5, count as matched, for which of them are kept is a matter of rounding.
        score: Largest difference of a score among those found by both.
        corner: Largest difference of a corner's coordinate among them, over the longer side of the picture.
        mask: Largest mean difference of a mask among them, over the mask's area; 0 without masks.
    """

    pictures: int
    detections: int
    matched: float
    score: float
    corner: float
    mask: float


def export_onnx(
    model: nn.Module,
    file: str | os.PathLike,
    *,
    size: tuple[int, int],
    pictures: Sequence[Tensor],
    fused: bool = True,
    tolerance: float = 1e-3,
) -> DetectionAgreement:
    """Write a whole detector as an ONNX file for one picture of a fixed size, and check it with ONNX Runtime.

    The file takes `picture` `(C, H, W)`, float32 in [0, 1], and resizes and normalises it itself. It gives `boxes`
    `(n, 4)` as x1, y1, x2, y2 in px, `labels` `(n,)` from 1, `scores` `(n,)` and, with Mask R-CNN, `masks`
    `(n, 1, H, W)` in [0, 1], best first; n depends on the picture and may be 0.

    Args:
        model: Made by `build`; the given one is untouched, and exported as in evaluation mode.
        file: Its name ends in .onnx.
        size: H and W of the pictures that the file takes, in px.
        pictures: Real ones to check with, `(C, h, w)` in [0, 1], resized to `size` where they differ.
        fused: Fuse the backbone first.
        tolerance: Largest difference of a score, of a corner over the picture's longer side, and of a mask over its
            area that counts as equal.

    Returns:
        How the file agrees with PyTorch.

    Raises:
        InputError: If ONNX is not installed, the model is none of `build`'s, no picture is given, the file cannot be
            written, or less than 98 % of the detections agree with PyTorch's; no file is left then.
    """
    file = Path(file)
    require(("onnx", "onnxscript", "onnxruntime"), "onnx", "export of a detector")
    import onnx

    if file.suffix != ".onnx":
        raise InputError(f"{file}: the name of the file must end in .onnx")
    if file.is_dir():
        raise InputError(f"{file}: is a folder; give the file another name")
    if not pictures:
        raise InputError(f"{file}: give at least one picture to check the file with")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"{file}: size is {size}; give height and width in px, at least 1 each")
    model = copy.deepcopy(model).eval().cpu().float()
    network = OnePicture(fuse(model) if fused else model, (size[0], size[1])).eval()
    channels = len(network.mean)
    resized = [_resized(picture, channels, network.size, file) for picture in pictures]
    try:
        folder = tempfile.TemporaryDirectory(dir=file.parent, prefix=".exporting-")
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror or error})") from error
    with folder as name:
        aside = Path(name) / file.name
        with torch.no_grad():
            program = onnx_program(network, resized[0], input_name=INPUT, output_names=network.outputs)
        onnx.save(program, aside)
        onnx.checker.check_model(aside, full_check=True)
        session = onnx_session(aside)
        found = [
            (_run(model, picture), dict(zip(network.outputs, map(torch.from_numpy, outputs), strict=True)))
            for picture in resized
            for outputs in [session.run(network.outputs, {INPUT: picture.numpy()})]
        ]
        agreement = compare(found, network.size, tolerance)
        if agreement.matched < LEAST_MATCHED:
            raise InputError(
                f"{file}: the file does not agree with the network: {100 * agreement.matched:.0f} % of "
                f"{agreement.detections} detections in {len(resized)} pictures are the same within {tolerance:g} "
                f"(scores differ by up to {agreement.score:.2g}, corners by {agreement.corner:.2g} of the picture's "
                f"side, masks by {agreement.mask:.2g} of their area); nothing was written"
            )
        os.replace(aside, file)
    if agreement.detections == 0:
        logger.warning("%s: nothing was found in the pictures to check with, so that the check says little", file)
    return agreement


def _resized(picture: Tensor, channels: int, size: tuple[int, int], file: Path) -> Tensor:
    if picture.dim() != 3 or len(picture) not in (1, channels):
        shape = "x".join(map(str, picture.shape))
        raise InputError(f"{file}: a picture to check with is {shape}; give {channels}xHxW")
    picture = picture.detach().float().cpu().expand(channels, -1, -1)
    if picture.shape[1:] != size:
        picture = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
    return picture.contiguous()


def _run(model: nn.Module, picture: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model([picture])[0]


def compare(
    pairs: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]], size: tuple[int, int], tolerance: float
) -> DetectionAgreement:
    """How detections of the same pictures agree, each pair those of PyTorch and those of a file."""
    total, detections, matched = 0, 0, 0
    largest = {"scores": 0.0, "boxes": 0.0, "masks": 0.0}
    for ours, theirs in pairs:
        detections += len(ours["scores"])
        for one, other in ((ours, theirs), (theirs, ours)):
            lowest = one["scores"].min() if len(one["scores"]) else torch.tensor(0.0)
            taken = torch.zeros(len(other["scores"]), dtype=torch.bool)
            for i in range(len(one["scores"])):
                total += 1
                differences = _differences(one, i, other, size)
                far = torch.stack(list(differences.values())).amax(0).nan_to_num(nan=torch.inf)
                far[taken | (other["labels"] != one["labels"][i])] = torch.inf
                nearest = int(far.argmin()) if len(far) else 0
                near = len(far) > 0 and bool(far[nearest] <= tolerance)
                mask = _mask_difference(one, i, other, nearest) if near else 0.0
                if near and mask <= tolerance:
                    taken[nearest] = True
                    matched += 1
                    largest["masks"] = max(largest["masks"], mask)
                    for name, value in differences.items():
                        largest[name] = max(largest[name], value[nearest].item())
                elif one["scores"][i] - lowest <= ROUNDING:
                    matched += 1
    share = matched / total if total else 1.0
    return DetectionAgreement(len(pairs), detections, share, largest["scores"], largest["boxes"], largest["masks"])


def _differences(
    one: dict[str, Tensor], index: int, other: dict[str, Tensor], size: tuple[int, int]
) -> dict[str, Tensor]:
    """How score and corners of detection `index` of one differ from each of the other's, `(n,)` by name."""
    return {
        "scores": (other["scores"] - one["scores"][index]).abs(),
        "boxes": (other["boxes"] - one["boxes"][index]).abs().amax(1) / max(size),
    }


def _mask_difference(one: dict[str, Tensor], index: int, other: dict[str, Tensor], nearest: int) -> float:
    """How the masks of two detections differ, over the area of the first; 0 without masks."""
    if "masks" not in one:
        return 0.0
    mask = one["masks"][index]
    return ((other["masks"][nearest] - mask).abs().sum() / mask.sum().clamp(min=1)).item()
