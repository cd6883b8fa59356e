"""`patnet export`: a network as a file for another runtime."""

import json as jsonlib
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from ..data import DataSplits, UnreadableImage, eval_transform, is_unlabelled, load_unlabelled, open_data
from ..data.loading import read_stream
from ..deploy import Agreement, Exported, ExportInfo, bytes_of, export, load_exported, suffixes
from ..deploy.backend import MIN_DYNAMIC_SIZE
from ..errors import InputError
from ..loading import load
from ..models import Loaded
from ..train.config import PositiveInt, TrainConfig
from ..train.data import open_run_data
from ..train.evaluate import accuracy
from ..train.run import RunDirectory
from .parser import refuse_idle

SUMMARY = (
    "Export a classifier as a file for ONNX Runtime, OpenVINO, ExecuTorch or PyTorch, and check it on real images."
)
EXAMPLES = """Examples:
  patnet export runs/first --out first.onnx
  patnet export runs/first --out first.xml
  patnet export runs/first --out small.xml --precision int8
  patnet export runs/first --out first.onnx --dynamic-batch --dynamic-size
  patnet export runs/first --out first.pt2 --format aotinductor
  patnet predict first.onnx image.jpg

The file holds the class names and the preprocessing, so patnet predict and patnet evaluate take it like a run.
It is compared with PyTorch on real images before it is moved into place; if it does not agree, nothing is written.
Of an int8 file the accuracy is measured too, beside that of the network, on test or validation images."""
EXTRA = ("train", ("lightning", "torchmetrics", "jsonargparse", "rich"))
POSITIONAL = {"run": None}

ACCURACY_IMAGES = 1000  # at most, evenly spaced


def run(
    run: str,
    *,
    out: str,
    format: str | None = None,
    precision: str = "fp32",
    batch_size: PositiveInt = 1,
    img_size: list[PositiveInt] | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    unfused: bool = False,
    checkpoint: Literal["best", "last"] = "best",
    data: str | None = None,
    check_images: PositiveInt = 32,
    calibration_images: PositiveInt = 300,
    json: bool = False,
    given: Collection[str] = (),
) -> int:
    """Export, and print how the file agrees with PyTorch.

    Args:
        run: Run directory, checkpoint, or a model of timm (with random weights).
        out: The file; its suffix is that of the format.
        format: onnx (.onnx), openvino (.xml and .bin), executorch (.pte, for phones), torch (.pt2, torch.export) or
            aotinductor (.pt2, compiled); default: the first of them with the suffix of the file.
        precision: fp32, fp16, bf16 or int8, if the backend has it.
        batch_size: Images per call.
        img_size: Side, or height and width, in px; default: the size of training.
        dynamic_batch: Take any number of images per call.
        dynamic_size: Take images of any size of at least 64x64 px; slower.
        unfused: Do not fold norms into convolutions.
        checkpoint: Weights of the run.
        data: Data set to check and calibrate with, or a folder of images without classes; default: the run's own, else
            elpv.
        check_images: Number of images to check with.
        calibration_images: Number of training images to calibrate int8 with.
        json: Print JSON.
    """
    if dynamic_batch and "batch_size" in given:
        raise InputError(f"--batch-size {batch_size} and --dynamic-batch: choose one")
    refuse_idle(given, {"--precision int8": (precision == "int8", ("calibration_images",))})
    loaded = load(run, checkpoint=checkpoint)
    if precision == "int8" and data is None and loaded.run is None and loaded.pretrained:
        raise InputError(f"--precision int8: is calibrated on images like those that {run} is for; give --data")
    path = Path(out)
    config = _data_config(run, loaded, img_size, MIN_DYNAMIC_SIZE if dynamic_size else 32)
    info = ExportInfo(
        backend=format or suffixes().get(path.suffix, "onnx"),
        precision=precision,
        batch_size=None if dynamic_batch else batch_size,
        img_size=None if dynamic_size else config["input_size"][1:],
        in_chans=config["input_size"][0],
        fused=not unfused,
        pretrained=loaded.pretrained,
        model=getattr(loaded.model, "pretrained_cfg", {}).get("architecture", type(loaded.model).__name__),
        source=run,
        label_names=loaded.class_names,
        data_config={key: value for key, value in config.items() if key != "num_classes"},
        threshold=None if loaded.threshold is None else asdict(loaded.threshold),
    )
    splits, transform = _open(loaded, data), eval_transform(config)
    images = sample_images(splits.test or splits.val or splits.train, check_images, transform)
    calibration = sample_images(splits.train, calibration_images, transform) if precision == "int8" else None
    with Console(stderr=True).status(escape(f"exporting {run} to {out}")):
        agreement = export(loaded.model, path, images, info=info, calibration=calibration)
        found = None
        if precision == "int8":
            found = _accuracy(path, replace(loaded, data_config=config), splits)
    _report(path, loaded, agreement, found, json)
    return 0


def _accuracy(path: Path, loaded: Loaded, splits: DataSplits) -> dict[str, Any] | None:
    """The accuracy of a network and of the file made from it on test or validation images, if there are any."""
    name = "test" if splits.test is not None else "val"
    dataset = getattr(splits, name)
    known = loaded.pretrained and splits.labelled and splits.class_names == loaded.class_names
    if dataset is None or isinstance(dataset, IterableDataset) or not known:
        return None
    count = min(len(dataset), ACCURACY_IMAGES)
    images = Subset(dataset, [i * len(dataset) // count for i in range(count)])
    (of_network, readable), (of_file, _) = accuracy(loaded, images), accuracy(load(path), images)
    return {"split": name, "images": readable, "network": of_network, "file": of_file}


def _data_config(run: str, loaded: Loaded, img_size: list[int] | None, least: int) -> dict[str, Any]:
    """The preprocessing, for the image size to export for."""
    if isinstance(loaded.model, Exported):
        raise InputError(f"{run}: is an exported file; give the run or checkpoint that it was made from")
    if loaded.task != "classification":
        raise InputError(f"{run}: is a detector; use patnet detect export")
    channels, *size = loaded.data_config["input_size"]
    if img_size is not None:
        if len(img_size) > 2:
            raise InputError(f"--img-size {' '.join(map(str, img_size))}: give a side, or a height and a width")
        size = img_size if len(img_size) == 2 else 2 * img_size
    if min(size) < least:
        raise InputError(f"--img-size {size[0]} {size[1]}: must be at least {least}x{least} px")
    return loaded.data_config | {"input_size": (channels, *size)}


def _open(loaded: Loaded, data: str | None) -> DataSplits:
    """The data set to check and calibrate with."""
    if data is None and loaded.run is not None:
        return open_run_data(RunDirectory(loaded.run).read_config(TrainConfig))
    if data is not None and is_unlabelled(data):
        mode = "L" if loaded.data_config["input_size"][0] == 1 else "RGB"
        return load_unlabelled(Path(data), loaded.class_names, mode=mode, val_fraction=0.0)
    try:
        return open_data(data or "elpv", in_chans=loaded.data_config["input_size"][0])
    except InputError as error:
        if data is not None:
            raise
        raise InputError(
            f"there are no real images to check the file with ({error}); choose some with --data"
        ) from error


def sample_images(dataset: Any, count: int, transform: Callable[[Any], Tensor]) -> Tensor:
    """Preprocessed images `(N, C, H, W)` of a data set: evenly spaced ones, or the first ones of a stream.

    Args:
        dataset: Gives tuples of an image and a label.
        count: Number of images; a smaller data set gives all it has. Images that cannot be read are left out, but not
            of a stream, which cannot continue after one.
        transform: The preprocessing.

    Raises:
        InputError: If none can be read, or one of a stream cannot.
    """
    if isinstance(dataset, IterableDataset):
        found = [transform(image) for image, *_ in islice(read_stream(dataset), count)]
    else:
        found, count = [], min(count, len(dataset))
        for i in range(count):
            with suppress(UnreadableImage):
                found.append(transform(dataset[i * len(dataset) // count][0]))
    if not found:
        raise InputError(f"none of the {count} images to check the file with can be read; choose others with --data")
    return torch.stack(found)


def _report(path: Path, loaded: Loaded, agreement: Agreement, found: dict[str, Any] | None, json: bool) -> None:
    """Print what the file is, and how it agrees with PyTorch."""
    info = load_exported(path).info
    if not loaded.pretrained:
        print(f"patnet: {info.source}: has random weights", file=sys.stderr)
    size = bytes_of(path)
    parameters = 4 * sum(p.numel() for p in loaded.model.parameters())
    if json:
        result = {"path": str(path), "bytes": size, "parameter_bytes": parameters, "agreement": asdict(agreement)}
        result["accuracy"] = found
        print(jsonlib.dumps({**result, "info": asdict(info), "pretrained": loaded.pretrained}, indent=2))
        return
    sides = "any size" if info.img_size is None else "{}x{} px".format(*info.img_size)
    count = "any number of" if info.batch_size is None else info.batch_size
    same, of = 100 * agreement.same_prediction, f"{agreement.images} real images"
    print(f"{path}: {info.backend}, {info.precision}, {'fused' if info.fused else 'unfused'}")
    print(f"  input        {count} image(s) of {info.in_chans} channel(s) and {sides} per call")
    print(f"  size         {size / 1e6:.2f} MB, {size / parameters:.3f} times the parameters in float32")
    print(f"  logits       differ by {agreement.difference:.2g} at most, {agreement.relative:.1e} of the largest")
    print(f"  predictions  {same:.1f} % of {of} have the same class")
    if found is not None:
        lost = f"{100 * found['file']:.2f} %, of PyTorch in float32 {100 * found['network']:.2f} %"
        print(f"  accuracy     {lost} ({found['images']} {found['split']} images)")
    elif info.precision == "int8":
        print(f"  accuracy     not measured: patnet evaluate {path} --data IMAGES --out DIRECTORY")
