"""Exporting: a file that holds the network, its labels and its preprocessing, checked against PyTorch."""

import copy
import importlib
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from .format import LEAST_SIZE, Format, Request, require
from .fuse import fuse
from .info import ExportInfo
from .onnx import FORMAT as ONNX
from .openvino import FORMAT as OPENVINO
from .torch_export import AOTINDUCTOR, PROGRAM, is_package

__all__ = ["FORMATS", "Agreement", "Exported", "export", "load_exported"]

FORMATS: dict[str, Format] = {"onnx": ONNX, "openvino": OPENVINO, "torch": PROGRAM, "aotinductor": AOTINDUCTOR}

# The largest difference of the logits over the largest logit, and the least share of equal answers, that a file may
# have. int8 is a coarser network: it must answer alike, and what it costs in accuracy is for `patnet evaluate` to say.
TOLERANCES = {"fp32": (1e-4, 1.0), "fp16": (3e-2, 0.97), "int8": (0.5, 0.9)}


class Exported(nn.Module):
    """An exported network, run by its runtime on the CPU.

    Shapes: pictures `(N, C, H, W)`, float32 and preprocessed, to logits `(N, classes)`, for any N: where the file takes
    a fixed number of pictures, the call is split, and the last part filled up.

    Attributes:
        info: What the file says of itself.
    """

    def __init__(self, path: Path, run: Any, info: ExportInfo) -> None:
        super().__init__()
        self.path = path
        self.run = run
        self.info = info

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of pictures.

        Raises:
            InputError: If the file does not take pictures of this shape.
        """
        size = self.info.size
        if problem := _misfit(self.info, pictures):
            raise InputError(f"{self.path}: {problem}")
        if size is None and min(pictures.shape[2:]) < LEAST_SIZE:
            least, given = f"{LEAST_SIZE}x{LEAST_SIZE}", "x".join(map(str, pictures.shape[2:]))
            raise InputError(f"{self.path}: takes pictures of at least {least} px, not {given}")
        if len(pictures) == 0:
            return torch.zeros(0, len(self.info.label_names))
        pictures = pictures.detach().cpu().float().contiguous()
        step = self.info.batch
        if step is None:
            return self.run(pictures)
        parts = []
        for part in pictures.split(step):
            filled = torch.cat((part, part[-1:].expand(step - len(part), -1, -1, -1))) if len(part) < step else part
            parts.append(self.run(filled.contiguous())[: len(part)].clone())
        return torch.cat(parts)


def _misfit(info: ExportInfo, pictures: Tensor) -> str:
    """What is wrong with the shape of pictures for a file, or an empty string."""
    takes = (info.in_chans, *(info.size or pictures.shape[2:]))
    if pictures.dim() == 4 and pictures.shape[1:] == takes:
        return ""
    wanted = f"Nx{info.in_chans}x{'x'.join(map(str, info.size)) if info.size else 'HxW'}"
    return f"takes pictures of {wanted}, not {'x'.join(map(str, pictures.shape))}"


def load_exported(path: str | os.PathLike, threads: int | None = None) -> Exported:
    """Load a file that `export` wrote: `.onnx`, `.xml` of OpenVINO, or `.pt2`.

    Args:
        path: The file.
        threads: Of ONNX Runtime and OpenVINO; None for their own choice.

    Raises:
        InputError: If the file is missing, damaged, of no such format, without our metadata, or its runtime is not
            installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    fitting = [name for name, entry in FORMATS.items() if entry.suffix == path.suffix]
    if not fitting:
        suffixes = ", ".join(sorted({entry.suffix for entry in FORMATS.values()}))
        raise InputError(f"{path}: is no exported network, whose names end in {suffixes}")
    name = "aotinductor" if path.suffix == ".pt2" and is_package(path) else fitting[0]
    entry = FORMATS[name]
    require(entry.packages, entry.extra, f"{path}: {name}")
    try:
        run, info = entry.load(path, threads)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}") from error
    if info is None:
        raise InputError(f"{path}: says nothing of its labels and preprocessing; export it with patnet export")
    return Exported(path, run, info)


@dataclass(frozen=True)
class Agreement:
    """How an exported file agrees with PyTorch.

    Attributes:
        pictures: How many were compared.
        difference: Largest difference of a logit.
        relative: That over the largest logit.
        same_answer: Share of the pictures with the same class.
        same_or_close: That and the share with another class whose logit was closer than `difference` to the best.
    """

    pictures: int
    difference: float
    relative: float
    same_answer: float
    same_or_close: float


def _compare(exported: Exported, model: nn.Module, pictures: Tensor) -> Agreement:
    device = next(model.parameters()).device
    with torch.inference_mode():
        expected = torch.cat([model(part.to(device)).float().cpu() for part in pictures.split(16)])
    found = exported(pictures)
    difference = (found - expected).abs().max().item()
    answer = found.argmax(dim=1, keepdim=True)
    same = answer[:, 0] == expected.argmax(dim=1)
    close = expected.amax(dim=1) - expected.gather(1, answer)[:, 0] <= difference
    return Agreement(
        pictures=len(pictures),
        difference=difference,
        relative=difference / max(expected.abs().max().item(), 1e-12),
        same_answer=same.float().mean().item(),
        same_or_close=(same | close).float().mean().item(),
    )


def export(
    model: nn.Module,
    path: str | os.PathLike,
    pictures: Tensor,
    *,
    info: ExportInfo,
    calibration: Tensor | None = None,
) -> Agreement:
    """Write a network as a file, and check the file against the network.

    Args:
        model: Gives logits; the given one is untouched. In training mode it is exported as in evaluation, with a
            warning.
        path: The file; OpenVINO's weights go beside it, ending in .bin.
        pictures: Real pictures to check with, preprocessed, `(N, C, H, W)`, of the size to export for.
        info: What the file shall be and say of itself; `format`, `precision`, `batch`, `size` and `fused` are obeyed.
        calibration: Pictures to calibrate int8 with, `(M, C, H, W)`, not those to check with.

    Raises:
        InputError: If the format does not exist, is not installed or has not this precision, the folder cannot be
            written, or the file does not agree with the network; no file is left then.
    """
    path = Path(path)
    if info.format not in FORMATS:
        raise InputError(f"no format {info.format!r}{nearest(info.format, FORMATS)}; there are {', '.join(FORMATS)}")
    entry = FORMATS[info.format]
    if info.precision not in entry.precisions:
        raise InputError(f"{info.format} is not written in {info.precision}: choose {', '.join(entry.precisions)}")
    if path.suffix != entry.suffix:
        raise InputError(f"{path}: the name of a file of format {info.format} must end in {entry.suffix}")
    require(entry.packages, entry.extra, f"format {info.format}")
    if info.precision == "int8":
        require(("nncf",), entry.extra, "int8")
    for file in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
        if file.is_dir():
            raise InputError(f"{file}: is a folder; give the file another name")
    if problem := _misfit(info, pictures):
        raise InputError(f"{path}: {problem}")
    if info.precision == "int8" and (calibration is None or len(calibration) < (info.batch or 1)):
        raise InputError(f"int8 needs at least {info.batch or 1} pictures to calibrate with")
    if info.size is None and min(pictures.shape[2:]) < LEAST_SIZE:
        raise InputError(f"a file for any size needs pictures of at least {LEAST_SIZE}x{LEAST_SIZE} px to trace with")
    if model.training:
        warnings.warn("the network is in training mode; it is exported as it is in evaluation", stacklevel=2)
    model = copy.deepcopy(model).eval()
    # Two pictures where their number is free, for one alone is taken for a constant.
    example = pictures[:1].cpu().expand(info.batch or 2, -1, -1, -1).contiguous()
    tools = ("patnet", "torch", *entry.packages, *(("nncf",) if info.precision == "int8" else ()))
    versions = {tool: str(importlib.import_module(tool).__version__) for tool in tools}
    info = replace(info, versions=info.versions | versions)
    written = (fuse(model) if info.fused else copy.deepcopy(model)).cpu()
    request = Request(info, example, calibration)
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".exporting-")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror or error})") from error
    with folder as name:
        aside = Path(name) / path.name
        entry.write(written, aside, request)
        agreement = _compare(load_exported(aside), model, pictures)
        relative, share = TOLERANCES[info.precision]
        if not agreement.relative <= relative or agreement.same_or_close < share:
            raise InputError(
                f"{path}: the file does not agree with the network: logits differ by {agreement.difference:.2g} "
                f"({100 * agreement.relative:.2g} % of the largest, {100 * relative:g} % is allowed), the answer "
                f"is the same for {100 * agreement.same_or_close:.0f} % of {agreement.pictures} pictures "
                f"({100 * share:g} % needed); nothing was written"
            )
        for file in sorted(Path(name).iterdir(), key=lambda file: file.suffix == path.suffix):  # the .xml last
            os.replace(file, path.with_suffix(file.suffix))
    return agreement
