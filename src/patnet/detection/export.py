"""A complete detector as a file for ONNX Runtime, OpenVINO or ExecuTorch, checked against PyTorch on real images."""

import copy
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deploy.backend import KEY, tracing
from ..deploy.executorch import executorch_program, load_method
from ..deploy.onnx import onnx_program, onnx_session
from ..errors import InputError, require
from ..files import atomic_write
from ..models import fuse
from .single_image import SingleImage

TOLERANCE = 1e-3  # of a score, of a corner divided by the image's longer side, and of a mask divided by its area
ROUNDING = 1e-5  # scores closer than this change places by rounding alone
MIN_MATCHED = 0.98  # share of the detections: rounding also decides an overlap at the very threshold

logger = logging.getLogger("patnet")


@dataclass(frozen=True)
class DetectionAgreement:
    """How the detections of an exported file agree with PyTorch's.

    Attributes:
        images: Number of images compared.
        detections: Number of PyTorch's detections in them.
        matched: Share of the detections of either side that the other side has too: of the same label, with score,
            corners and mask within the tolerance. Those within 1e-5 of an image's lowest score count as matched, since
            rounding decides which of them are kept.
        score: Largest difference of a score among the matched.
        corner: Largest difference of a corner's coordinate, divided by the longer side of the image.
        mask: Largest mean difference of a mask, divided by the mask's area; 0 without masks.
    """

    images: int
    detections: int
    matched: float
    score: float
    corner: float
    mask: float


class Format(NamedTuple):
    """An entry of `FORMATS`."""

    extra: str  # of patnet that installs the packages
    packages: tuple[str, ...]
    write: Callable[[SingleImage, Path, Tensor, str], None]  # with the text of the metadata
    load: Callable[[Path, int], Callable[[Tensor], list[Tensor]]]  # with the number of outputs
    fixed: bool = False  # as many rows for each image


def _onnx(network: SingleImage, image: Tensor, text: str) -> Any:
    import onnx

    proto = onnx_program(network, image, input_name="image", output_names=network.outputs)
    onnx.helper.set_model_props(proto, {KEY: text})
    return proto


def _write_onnx(network: SingleImage, path: Path, image: Tensor, text: str) -> None:
    import onnx

    onnx.save(_onnx(network, image, text), path)
    onnx.checker.check_model(path, full_check=True)


def _load_onnx(path: Path, outputs: int) -> Callable[[Tensor], list[Tensor]]:
    session: Any = onnx_session(path)
    return lambda image: [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]


def _write_openvino(network: SingleImage, path: Path, image: Tensor, text: str) -> None:
    import openvino

    graph = openvino.Core().read_model(io.BytesIO(_onnx(network, image, text).SerializeToString()))
    graph.set_rt_info(text, KEY)
    openvino.save_model(graph, path, compress_to_fp16=False)


def _load_openvino(path: Path, outputs: int) -> Callable[[Tensor], list[Tensor]]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(image: Tensor) -> list[Tensor]:
        found = compiled([image.numpy()])
        return [torch.from_numpy(found[i].copy()) for i in range(outputs)]

    return run


def _write_executorch(network: SingleImage, path: Path, image: Tensor, text: str) -> None:
    path.write_bytes(executorch_program(network, image, text))


def _load_executorch(path: Path, outputs: int) -> Callable[[Tensor], list[Tensor]]:
    method, _ = load_method(path)
    return lambda image: [value.clone() for value in method(image)]


ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# By the suffix of the file.
FORMATS: dict[str, Format] = {
    ".onnx": Format("onnx", ONNX_PACKAGES, _write_onnx, _load_onnx),
    ".xml": Format("openvino", ("onnx", "onnxscript", "openvino"), _write_openvino, _load_openvino),
    ".pte": Format("executorch", ("executorch",), _write_executorch, _load_executorch, fixed=True),
}


def export_detector(
    model: nn.Module,
    file: str | os.PathLike,
    *,
    size: tuple[int, int],
    images: Sequence[Tensor],
    class_names: Sequence[str] = (),
    fused: bool = True,
) -> DetectionAgreement:
    """Write a complete detector as a file for one image of a fixed size, and check it in its runtime.

    The file takes `image` `(C, H, W)`, float32 in [0, 1], and resizes and normalises it itself. It gives `boxes`
    `(n, 4)` as x1, y1, x2, y2 in px, `labels` `(n,)` from 1, `scores` `(n,)` and, with Mask R-CNN, `masks`
    `(n, 1, H, W)` in [0, 1], best first; n depends on the image and may be 0. In a program of ExecuTorch n is the same
    for each image, and a score of 0 means no detection. The metadata `patnet` holds `class_names` and `size` as JSON.

    Args:
        model: Made by `build`; it is not changed, and is exported in evaluation mode.
        file: Its suffix is that of the format: .onnx, .xml (OpenVINO, with weights in .bin) or .pte (ExecuTorch).
        size: H and W of the images that the file takes, in px.
        images: Real images to check with, `(C, h, w)` in [0, 1], resized to `size` where they differ.
        class_names: Names of labels 1, 2, ...
        fused: Fuse the backbone first.

    Raises:
        InputError: If the runtime is not installed, the model is not a detector or cannot be traced, no image is given,
            the file cannot be written, or less than 98 % of the detections agree with PyTorch's; no file is left then.
    """
    file = Path(file)
    if file.suffix not in FORMATS or file.is_dir():
        raise InputError(f"{file}: give a file name that ends in {', '.join(FORMATS)}")
    chosen = FORMATS[file.suffix]
    require(chosen.packages, chosen.extra, f"export of a detector as {file.suffix}")
    if not images:
        raise InputError(f"{file}: give at least one image to check the file with")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"{file}: size is {size}; give height and width in px, at least 1 each")
    model = copy.deepcopy(model).eval().cpu().float()
    try:
        network = SingleImage(fuse(model) if fused else model, (size[0], size[1]), chosen.fixed).eval()
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    resized = [_resize(image, len(network.mean), network.size, file) for image in images]
    text = json.dumps({"task": "detection", "class_names": list(class_names), "size": list(size)})
    with atomic_write(file) as path, torch.no_grad():
        with tracing(f"{file}: the detector cannot be exported"):
            chosen.write(network, path, resized[0], text)
        run = chosen.load(path, len(network.outputs))
        pairs = []
        for image in resized:
            found = dict(zip(network.outputs, run(image), strict=True))
            real = found["scores"] > 0
            pairs.append((model([image])[0], {name: value[real] for name, value in found.items()}))
        agreement = compare(pairs, network.size)
        if agreement.matched < MIN_MATCHED:
            raise InputError(
                f"{file}: not written, because the file does not agree with PyTorch: "
                f"{100 * agreement.matched:.0f} % of {agreement.detections} detections in {agreement.images} images "
                f"are equal within {TOLERANCE:g} (of these, scores differ by up to {agreement.score:.2g}, corners by "
                f"{agreement.corner:.2g} of the image's side, masks by {agreement.mask:.2g} of their area)"
            )
        if file.suffix == ".xml":  # in place before the file itself
            os.replace(path.with_suffix(".bin"), file.with_suffix(".bin"))
    if agreement.detections == 0:
        logger.warning("%s: nothing was detected in the images to check with, so the check says little", file)
    return agreement


def _resize(image: Tensor, channels: int, size: tuple[int, int], file: Path) -> Tensor:
    if image.dim() != 3 or len(image) not in (1, channels):
        shape = "x".join(map(str, image.shape))
        raise InputError(f"{file}: an image to check with is {shape}; give {channels}xHxW")
    image = image.detach().float().cpu().expand(channels, -1, -1)
    if image.shape[1:] != size:
        image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    return image.contiguous()


def compare(pairs: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]], size: tuple[int, int]) -> DetectionAgreement:
    """How two sets of detections agree: for each image those of PyTorch and those of the file."""
    total = matched = 0
    largest = torch.zeros(3)
    for ours, theirs in pairs:
        score = (ours["scores"][:, None] - theirs["scores"]).abs()
        corner = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(2) / max(size)
        distance = torch.maximum(score, corner)
        distance[(ours["labels"][:, None] != theirs["labels"]) | ~(distance <= TOLERANCE)] = torch.inf
        nearest = []
        for i, row in enumerate(distance):
            if row.isfinite().any():
                nearest.append((i, int(row.argmin())))
                distance[:, nearest[-1][1]] = torch.inf  # which changes the rows that follow
        rows, columns = torch.tensor(nearest, dtype=torch.long).view(-1, 2).T
        masks = torch.zeros(len(rows))
        if "masks" in ours:
            both = ((ours["masks"][i], theirs["masks"][j]) for i, j in nearest)
            masks = torch.tensor([float((b - a).abs().sum() / a.sum().clamp(min=1)) for a, b in both])
        equal = masks <= TOLERANCE
        differences = torch.stack((score[rows, columns], corner[rows, columns], masks), 1)[equal]
        largest = torch.cat((largest[None], differences)).amax(0)
        for found, places in ((ours["scores"], rows[equal]), (theirs["scores"], columns[equal])):
            same = found <= found.min() + ROUNDING if len(found) else found > 0
            same[places] = True
            total, matched = total + len(found), matched + int(same.sum())
    count = sum(len(ours["scores"]) for ours, _ in pairs)
    return DetectionAgreement(len(pairs), count, matched / total if total else 1.0, *largest.tolist())
