"""Exporting: a file with the network, its class names and its preprocessing, checked against PyTorch."""

import copy
import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_write
from ..models import fuse
from .backend import Backend, ExportInfo, Request, tracing
from .table import backend_of, find_backend

__all__ = ["TOLERANCES", "Agreement", "Exported", "bytes_of", "export", "load_exported"]

# For each precision the largest difference of the logits relative to the largest logit, and the smallest share of
# equal predictions that a file may have. int8 is a coarser network: its predictions must be nearly the same, and
# `patnet evaluate` measures what it costs in accuracy.
TOLERANCES = {"fp32": (1e-4, 1.0), "fp16": (3e-2, 0.97), "bf16": (5e-2, 0.97), "int8": (0.5, 0.9)}
CLOSE = 0.1  # of the largest logit: two classes nearer than that are no clear prediction


class Exported(nn.Module):
    """An exported network, run by its backend on the CPU.

    Shapes: images `(N, C, H, W)`, float32 and preprocessed, to logits `(N, classes)`, for any N: a file with a fixed
    batch size is called several times, and the last batch is padded.

    Attributes:
        path: The file.
        info: The metadata of the file.
        run: The backend's callable, for images of the shape that the file takes.
    """

    def __init__(self, path: Path, run: Callable[[Tensor], Any], info: ExportInfo) -> None:
        super().__init__()
        self.path = path
        self.run = run
        self.info = info

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Raises:
            InputError: If the file does not take images of this shape.
        """
        if problem := self.info.mismatch(images):
            raise InputError(f"{self.path}: {problem}")
        if len(images) == 0:
            return torch.zeros(0, len(self.info.label_names))
        images = images.detach().cpu().float().contiguous()
        size = self.info.batch_size
        if size is None:
            return self.run(images)
        parts = []
        for part in images.split(size):
            padded = torch.cat((part, part[-1:].expand(size - len(part), -1, -1, -1))) if len(part) < size else part
            parts.append(self.run(padded.contiguous())[: len(part)].clone())
        return torch.cat(parts)


def load_exported(path: str | os.PathLike, threads: int | None = None) -> Exported:
    """Load a file that `export` wrote.

    Args:
        path: The file; its suffix is that of a backend, such as `.onnx`, `.xml` (OpenVINO) or `.pt2`.
        threads: Number of threads of ONNX Runtime and OpenVINO; None for their own choice.

    Raises:
        InputError: If the file is missing, damaged, of no known format or without our metadata, or if a package that
            its backend needs is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    backend = backend_of(path)
    backend.check(backend.precisions[0])
    try:
        run, info = backend.load(path, threads)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if info is None:
        raise InputError(f"{path}: has no class names and no preprocessing; export it with patnet export")
    return Exported(path, run, info)


def bytes_of(path: Path) -> int:
    """The size of an exported file, with those that belong to it."""
    return sum(file.stat().st_size for file in (path, *map(path.with_suffix, backend_of(path).companions)))


@dataclass(frozen=True)
class Agreement:
    """How an exported file agrees with PyTorch.

    Attributes:
        images: Number of images compared.
        difference: Largest absolute difference of a logit.
        relative: The same, relative to the largest logit.
        same_prediction: Share of the images with the same predicted class.
        same_or_close: The same, including images whose two classes have logits closer than `difference`, and than a
            tenth of the largest logit.
    """

    images: int
    difference: float
    relative: float
    same_prediction: float
    same_or_close: float


def _compare(exported: Exported, model: nn.Module, images: Tensor) -> Agreement:
    device = next(model.parameters()).device
    with torch.inference_mode():
        expected = torch.cat([model(part.to(device)).float().cpu() for part in images.split(16)])
    found = exported(images)
    difference = (found - expected).abs().max().item()
    predicted = found.argmax(dim=1, keepdim=True)
    same = predicted[:, 0] == expected.argmax(dim=1)
    largest = expected.abs().max().item()
    close = expected.amax(dim=1) - expected.gather(1, predicted)[:, 0] <= min(difference, CLOSE * largest)
    return Agreement(
        images=len(images),
        difference=difference,
        relative=difference / max(largest, 1e-12),
        same_prediction=same.float().mean().item(),
        same_or_close=(same | close).float().mean().item(),
    )


def _check(path: Path, backend: Backend, info: ExportInfo, images: Tensor) -> None:
    backend.check(info.precision)
    if path.suffix != backend.suffix:
        wanted = f"must be {backend.suffix}" if backend.suffix else "cannot be written: the backend has no file format"
        raise InputError(f"{path}: the suffix of a file for backend {backend.name} {wanted}")
    for file in (path, *map(path.with_suffix, backend.companions)):
        if file.is_dir():
            raise InputError(f"{file}: is a directory; choose another path")
    if not backend.dynamic and (info.batch_size is None or info.img_size is None):
        raise InputError(f"{path}: a file for backend {backend.name} takes one batch size and one image size")
    if problem := info.mismatch(images):
        raise InputError(f"{path}: {problem}")


def export(
    model: nn.Module,
    path: str | os.PathLike,
    images: Tensor,
    *,
    info: ExportInfo,
    calibration: Tensor | None = None,
) -> Agreement:
    """Write a network as a file, and check the file against the network before it is moved into place.

    Args:
        model: Gives logits; it is not changed. In training mode it is exported in evaluation mode, with a warning.
        path: The file; OpenVINO's weights go next to it into a .bin file.
        images: Real images to check with, preprocessed, `(N, C, H, W)`, of the size to export for.
        info: Metadata of the file; its backend, precision, batch size, image size and `fused` are what is written.
        calibration: Images to calibrate int8 with, `(M, C, H, W)`, other than those to check with.

    Raises:
        InputError: If the backend does not exist, is not installed or does not have the precision, if it cannot export
            the network, if the path cannot be written, or if the file does not agree with the network; then no file is
            left.
    """
    path = Path(path)
    backend = find_backend(info.backend)
    _check(path, backend, info, images)
    tools = ("patnet", "torch", *backend.needs(info.precision))
    versions = {tool: getattr(importlib.import_module(tool), "__version__", None) or version(tool) for tool in tools}
    info = replace(info, versions=info.versions | versions)
    # Two images where the batch size is dynamic, since tracing takes a dimension of 1 as constant.
    example = images[:1].cpu().expand(info.batch_size or 2, -1, -1, -1).contiguous()
    request = Request(info, example, calibration)
    if model.training:
        warnings.warn("the network is in training mode; it is exported in evaluation mode", stacklevel=2)
    model = copy.deepcopy(model).eval()
    written = (fuse(model) if info.fused else copy.deepcopy(model)).cpu()
    with atomic_write(path) as temporary:
        with tracing(f"{path}: backend {backend.name} cannot export the network"):
            backend.write(written, temporary, request)
        agreement = _compare(load_exported(temporary), model, images)
        _check_agreement(path, agreement, info.precision)
        for suffix in backend.companions:  # in place before the file itself
            os.replace(temporary.with_suffix(suffix), path.with_suffix(suffix))
    return agreement


def _check_agreement(path: Path, agreement: Agreement, precision: str) -> None:
    relative, share = TOLERANCES.get(precision, TOLERANCES["fp32"])
    if not agreement.relative <= relative or agreement.same_or_close < share:
        raise InputError(
            f"{path}: the file does not agree with the network: logits differ by {agreement.difference:.2g} "
            f"({100 * agreement.relative:.2g} % of the largest, {100 * relative:g} % is allowed), the predicted class "
            f"is the same or a close second for {100 * agreement.same_or_close:.0f} % of {agreement.images} images "
            f"({100 * share:g} % needed); nothing was written"
        )
