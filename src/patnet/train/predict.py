"""Prediction: one path for image files and data sets, in one process or several, into sinks."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import length_hint
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset

from ..data import ImageFiles, Unreadable, eval_transform, find_images
from ..data.loading import eval_loader
from ..deploy import BACKENDS, Exported
from ..deploy.backend import HalfPrecision
from ..deploy.backend import computed_in as backend_precision
from ..errors import InputError
from ..files import sha256
from ..models import Loaded
from .callbacks import progress_bar
from .config import NonNegativeInt, PositiveInt
from .sinks import Prediction, Sink

Precision = Literal["fp32", "bf16", "fp16"]

__all__ = ["check_classifier", "class_probabilities", "computed_in", "launch", "predict", "ranked", "tta_views"]


def check_classifier(loaded: Loaded, tta: int = 1, precision: Precision | None = None) -> Loaded:
    """Check that a network can classify images, and that its images have `tta` views of one shape.

    Returns:
        The network in the precision; None leaves it in its own.

    Raises:
        InputError: If not.
    """
    if loaded.task != "classification":
        raise InputError(f"{loaded.file}: is a detector; use patnet detect")
    if not loaded.pretrained:
        raise InputError("the network has random weights; give a run directory or a checkpoint")
    height, width = loaded.data_config["input_size"][-2:]
    if tta not in (1, 2, 4, 8):
        raise InputError(f"--tta {tta}: must be one of 1, 2, 4, 8")
    if tta == 8 and height != width:
        raise InputError(f"--tta 8: rotates images by 90 degrees, and these are {height}x{width} px; use 4")
    model = loaded.model
    own = model.info.precision if isinstance(model, Exported) else "fp32"
    if precision in (None, own):
        return loaded
    if isinstance(model, Exported):
        can = precision in BACKENDS[model.info.backend].precisions
        hint = (
            f"export it again with --precision {precision}"
            if can
            else f"backend {model.info.backend} does not have {precision}"
        )
        raise InputError(f"--precision {precision}: {loaded.file} is a file in {own}; {hint}")
    if precision == "bf16" and not (torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        warnings.warn("this processor has no bf16 instructions: PyTorch emulates them, slower than fp32", stacklevel=2)
    return replace(loaded, model=HalfPrecision(model, precision))


def tta_views(images: Tensor, tta: int) -> Iterator[Tensor]:
    """The first `tta` of the 8 views of images `(N, C, H, W)`: flipped left-right, flipped upside down, transposed."""
    for view in range(tta):
        x = images.transpose(2, 3) if view & 4 else images
        flipped = [dim for dim, bit in ((3, 1), (2, 2)) if view & bit]
        yield x.flip(flipped) if flipped else x


@torch.inference_mode()  # the network alone: what a data set makes in it could not be changed outside
def class_probabilities(model: nn.Module, images: Tensor, tta: int = 1) -> Tensor:
    """Probabilities `(N, classes)`, the mean over `tta` views of images `(N, C, H, W)`.

    Raises:
        InputError: If they are not finite.
    """
    probs = [model(view).float().softmax(dim=1) for view in tta_views(images, tta)]
    mean = torch.stack(probs).mean(0) if tta > 1 else probs[0]
    if not mean.isfinite().all():
        raise InputError("the network computes NaN for an image; its weights are damaged, or overflow in float16")
    return mean


def ranked(loaded: Loaded, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `(N, classes)` and classes, the decided class first, then by probability."""
    if loaded.threshold is None:
        return probs.sort(dim=1, descending=True)
    classes = loaded.threshold.order(probs, loaded.class_names)
    return probs.gather(1, classes), classes


def computed_in(loaded: Loaded) -> str:
    """The precision that a network is computed in; of an exported file what its runtime says, if it does."""
    model = loaded.model
    if isinstance(model, Exported):
        return backend_precision(model.run) or model.info.precision
    return model.precision if isinstance(model, HalfPrecision) else "fp32"


def launch(model: nn.Module, accelerator: str, devices: str) -> Fabric:
    """Start a process for each device, unless torchrun or SLURM did, and move the model there.

    Args:
        model: The network; an exported one runs on the CPU.
        accelerator: Accelerator, as Lightning names it.
        devices: Number or list of devices, as Lightning reads it.

    Raises:
        InputError: If there are no such devices.
    """
    for name in ("lightning.fabric", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    accelerator = "cpu" if isinstance(model, Exported) else accelerator
    nodes = 1
    if TorchElasticEnvironment.detect():
        devices = os.environ["LOCAL_WORLD_SIZE"]
        nodes = int(os.environ["WORLD_SIZE"]) // int(devices)
    number = int(devices) if devices.isdigit() else devices
    try:
        fabric = Fabric(accelerator=accelerator, devices=number, num_nodes=nodes)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"--accelerator {accelerator} --devices {devices}: not available here ({reason}); try --accelerator cpu"
        ) from error
    fabric.launch()
    model.to(fabric.device)
    return fabric


def _claimed_parts(
    keys: Callable[[], Iterable[Any]], size: int, claim: Callable[[int], bool]
) -> Iterator[tuple[int, list[Any]]]:
    """The index of the first image, and the keys, of each part of `size` images that this process claims."""
    claimed: set[int] = set()
    before = -1
    while len(claimed) > before:  # once more, since a process that was killed leaves parts unfinished
        before, part, items = len(claimed), 0, iter(keys())
        while found := list(islice(items, size)):
            if part not in claimed and claim(part):
                claimed.add(part)
                yield part * size, found
            part += 1


def _batches(
    loaded: Loaded, source: Any, count: int | None, sink: Sink, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, list[Any], list[int], list[Any]]]:
    """Images, labels (`Unreadable` for one that cannot be read), indices and keys, of the parts that are claimed."""
    size = sink.part_size
    options: dict[str, Any] = {"transform": eval_transform(loaded.data_config), "policy": "report"}
    if isinstance(source, IterableDataset):  # read by one process, since more would change the order
        for images, labels, indices in eval_loader(source, batch_size, num_workers=min(workers, 1), **options):
            kept = [i for i, index in enumerate(indices) if sink.claim(index // size)]
            if kept:
                kept_indices = [indices[i] for i in kept]
                yield images[kept], [labels[i] for i in kept], kept_indices, kept_indices
        return
    files = isinstance(source, list | tuple)
    mode = "L" if loaded.data_config["input_size"][0] == 1 else "RGB"
    all_keys = partial(find_images, source) if files else partial(range, count)
    for first, keys in _claimed_parts(all_keys, size, sink.claim):
        dataset = ImageFiles([(key, 0) for key in keys], mode) if files else Subset(source, keys)
        for images, labels, indices in eval_loader(dataset, batch_size, num_workers=workers, **options):
            yield images, labels, [first + i for i in indices], [keys[i] for i in indices]


def _manifest(loaded: Loaded, source: Any, name: str | None, top: int, tta: int) -> dict[str, Any]:
    """What is predicted, and by which network."""
    files = isinstance(source, list | tuple)
    digest = hashlib.sha256()
    count = 0
    if files:
        for count, path in enumerate(find_images(source), start=1):  # noqa: B007
            digest.update(os.fsencode(path) + b"\0")
    else:
        count = length_hint(source)  # 0 for a stream that does not say it
        digest.update(f"{name} {count}".encode())
    weights = {loaded.file, loaded.file.with_suffix(".bin")} if loaded.file else set()  # OpenVINO's are in .bin
    return {
        "source": list(source) if files else name,
        "images": digest.hexdigest(),
        "count": count or None,
        "files": files,
        "model": [sha256(file) for file in sorted(weights) if file.is_file()],
        "preprocessing": json.loads(json.dumps(loaded.data_config)),
        "class_names": loaded.class_names,
        "top": min(top, len(loaded.class_names)),
        "tta": tta,
        "threshold": None if loaded.threshold is None else loaded.threshold.probability,
        "computed_in": computed_in(loaded),
    }


def predict(
    loaded: Loaded,
    source: Sequence[str] | Dataset,
    sink: Sink,
    *,
    name: str | None = None,
    tta: Literal[1, 2, 4, 8] = 1,
    top: PositiveInt = 5,
    precision: Precision | None = None,
    batch_size: PositiveInt = 64,
    workers: NonNegativeInt = 0,
    accelerator: str = "auto",
    devices: str = "1",
    console: Console | None = None,
) -> bool:
    """Predict classes and their probabilities, and give them to a sink in the order of the images.

    Args:
        loaded: A classifier, trained or exported.
        source: Image files, directories and glob patterns; or a data set, whose items are `(image, label)`.
        sink: Where the predictions go.
        name: Name of the data set, which Parquet files record.
        tta: Test-time augmentation, the number of views of each image: 1, 2, 4 or 8.
        top: Number of classes for each image.
        precision: `"fp32"`, `"bf16"` or `"fp16"` to compute in; by default fp32, of an exported file its own.
        batch_size: Images per step.
        workers: Number of processes that load images.
        accelerator: Accelerator, as Lightning names it.
        devices: Number of devices, one process for each.
        console: Where the progress bar is shown.

    Returns:
        Whether this is the first process, which prints.

    Raises:
        InputError: If the network, the images, the devices or a sink cannot be used.
    """
    loaded = check_classifier(loaded, tta, precision)
    manifest = _manifest(loaded, source, name, top, tta)
    fabric = launch(loaded.model, accelerator, devices)
    streamed = isinstance(source, IterableDataset)
    if fabric.world_size > 1 and (streamed or not sink.shared):
        raise InputError("--devices: several processes need --parquet and a data set that is no stream")
    sink.start(manifest)
    bar = progress_bar((console or Console(stderr=True)) if fabric.is_global_zero else Console(quiet=True))
    with bar:
        task = bar.add_task("predicting", total=manifest["count"], completed=sink.completed)
        for images, found, indices, keys in _batches(loaded, source, manifest["count"], sink, batch_size, workers):
            probs, classes = ranked(loaded, class_probabilities(loaded.model, images.to(fabric.device), tta))
            probs, classes = probs[:, : manifest["top"]], classes[:, : manifest["top"]]
            for i, label in enumerate(found):
                error = label.reason if isinstance(label, Unreadable) else None
                labels = [loaded.class_names[c] for c in classes[i].tolist()]
                sink.write(Prediction(indices[i], keys[i], error, labels, probs[i].tolist()))
            bar.update(task, completed=sink.completed)
    sink.finish()
    fabric.barrier()
    return fabric.is_global_zero
