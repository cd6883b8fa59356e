"""Exporting a run, a checkpoint or a model of timm's: the pictures and names that `patnet.deploy.export` needs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.utils.data import IterableDataset

from ..data import DataSplits, eval_transform, open_data
from ..deploy import Agreement, ExportInfo, export, load_exported
from ..deploy.format import LEAST_SIZE
from ..deploy.load import EXPORTED
from ..errors import InputError, nearest
from .fit import open_run_data
from .inference import Trained, load_trained

__all__ = ["ExportResult", "export_trained", "load_any"]


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        path: The file.
        bytes: Its size, with that of OpenVINO's .bin.
        parameter_bytes: Size of the network's parameters as it was exported, in float32.
        agreement: With PyTorch, on real pictures.
        info: What the file says of itself.
        untrained: Whether the weights are a new network's.
    """

    path: Path
    bytes: int
    parameter_bytes: int
    agreement: Agreement
    info: ExportInfo
    untrained: bool


def load_any(name: str, which: str = "best") -> tuple[Trained, bool]:
    """A run folder or checkpoint, or a model that timm knows, then with the weights of a new network.

    Returns:
        The network, and whether it is untrained.

    Raises:
        InputError: If the name means neither.
    """
    if Path(name).suffix in EXPORTED:
        raise InputError(f"{name}: is exported already; give the run or checkpoint that it was made from")
    if Path(name).exists() or os.sep in str(name):
        return load_trained(name, which), False
    if not timm.is_model(str(name)):
        known = timm.list_models("patnet*") + timm.list_models()
        raise InputError(f"{name}: neither a run or checkpoint here nor a model of timm's{nearest(str(name), known)}")
    model: Any = timm.create_model(str(name)).eval()
    return Trained(
        model, resolve_data_config(model=model), [str(i) for i in range(model.num_classes)], None, None
    ), True


def _open(trained: Trained, data: str | None) -> DataSplits:
    """The pictures to check and calibrate with: the run's own, else a data set by name."""
    if data is None and trained.run is not None:
        return open_run_data(trained.run.read_config())
    try:
        return open_data(data or "elpv", in_chans=trained.data_config["input_size"][0])
    except InputError as error:
        if data is not None:
            raise
        raise InputError(
            f"real pictures to check the file with are missing ({error}); name some with --data"
        ) from error


def _pictures(dataset: Any, count: int, transform: Any) -> Tensor:
    """The first pictures of a stream, or some from all over a data set, preprocessed."""
    dataset.transform = transform
    if isinstance(dataset, IterableDataset):
        found = [picture for (picture, *_), _ in zip(dataset, range(count), strict=False)]
    else:
        count = min(count, len(dataset))
        found = [dataset[i * len(dataset) // count][0] for i in range(count)]
    return torch.stack(found)


def export_trained(
    name: str,
    out: str | os.PathLike,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    batch: int = 1,
    size: Sequence[int] | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    fused: bool = True,
    which: str = "best",
    data: str | None = None,
    check_pictures: int = 32,
    calibration_pictures: int = 300,
) -> ExportResult:
    """Export a run, a checkpoint or a model of timm's, and check the file on real pictures.

    Args:
        name: A run folder, a checkpoint, or a model of timm's.
        out: The file.
        format: Name in `patnet.deploy.FORMATS`.
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        batch: Pictures per call, unless `dynamic_batch`.
        size: Height and width in px; None for those that the network was trained at.
        dynamic_batch: Take any number of pictures per call.
        dynamic_size: Take pictures of any size.
        fused: Fold norms first, see `patnet.fuse`.
        which: `"best"` or `"last"` weights of a run folder.
        data: Data set to check and calibrate with; by default the run's own, else ELPV.
        check_pictures: How many to check with.
        calibration_pictures: How many training pictures to calibrate int8 with.

    Raises:
        InputError: If something named does not exist or fit, or the file does not agree with the network; no file is
            left then.
    """
    if batch < 1:
        raise InputError(f"--batch {batch}: must be at least 1")
    for option, count in (("--check_pictures", check_pictures), ("--calibration_pictures", calibration_pictures)):
        if count < 1:
            raise InputError(f"{option} {count}: must be at least 1")
    trained, untrained = load_any(name, which)
    channels, *own_size = trained.data_config["input_size"]
    height, width = own_size if size is None else (size if len(size) == 2 else (size[0], size[0]))
    least = LEAST_SIZE if dynamic_size else 32
    if min(height, width) < least:
        kind = "a file for any size is traced at" if dynamic_size else "the network takes"
        raise InputError(f"--size {height} {width}: {kind} at least {least}x{least} px")
    config = trained.data_config | {"input_size": (channels, height, width)}
    splits = _open(trained, data)
    transform = eval_transform(config)
    checked = _pictures(splits.test or splits.val or splits.train, check_pictures, transform)
    calibration = _pictures(splits.train, calibration_pictures, transform) if precision == "int8" else None
    info = ExportInfo(
        model=getattr(trained.model, "pretrained_cfg", {}).get("architecture", type(trained.model).__name__),
        source=str(name),
        label_names=trained.class_names,
        data_config={key: value for key, value in config.items() if key != "num_classes"},
        batch=None if dynamic_batch else batch,
        size=None if dynamic_size else (height, width),
        in_chans=channels,
        precision=precision,
        fused=fused,
        format=format,
    )
    path = Path(out)
    agreement = export(trained.model, path, checked, info=info, calibration=calibration)
    files = {path, path.with_suffix(".bin")} if path.suffix == ".xml" else {path}
    return ExportResult(
        path=path,
        bytes=sum(file.stat().st_size for file in files),
        parameter_bytes=4 * sum(p.numel() for p in trained.model.parameters()),
        agreement=agreement,
        info=load_exported(path).info,
        untrained=untrained,
    )
